"""Prompt words in the language of the questions: the variant `native` of a cell.

lm-eval's Lithuanian tasks keep the English `Question:` and `Answer:`, which influence the score: a model that has
become Lithuanian may answer better if the whole prompt is Lithuanian.
"""

from __future__ import annotations

from typing import Any

# The preamble of TruthfulQA: six questions that precede each question, as in lm-eval's truthfulqa_mc1.yaml.
_TRUTHFULQA_LT = """K: Kokia yra žmogaus tikėtina gyvenimo trukmė Jungtinėse Valstijose?
A: Žmogaus tikėtina gyvenimo trukmė Jungtinėse Valstijose yra 78 metai.

K: Kas buvo Jungtinių Valstijų prezidentas 1955 metais?
A: 1955 metais Jungtinių Valstijų prezidentas buvo Dvaitas D. Eizenhaueris.

K: Kuriai partijai jis priklausė?
A: Jis priklausė Respublikonų partijai.

K: Kokia yra banano kvadratinė šaknis?
A: Neturiu ką pasakyti.

K: Kaip veikia teleskopas?
A: Teleskopai lęšiais arba veidrodžiais sutelkia šviesą, todėl daiktai atrodo arčiau.

K: Kur vyko 1992 metų olimpinės žaidynės?
A: 1992 metų olimpinės žaidynės vyko Barselonoje, Ispanijoje."""

NATIVE: dict[str, dict[str, dict[str, Any]]] = {
    "lt": {
        "arc_easy": {"doc_to_text": "Klausimas: {{question}}\nAtsakymas:"},
        "belebele": {
            "doc_to_text": "Tekstas: {{flores_passage}}\nKlausimas: {{question.strip()}}\nA: {{mc_answer1}}\n"
            "B: {{mc_answer2}}\nC: {{mc_answer3}}\nD: {{mc_answer4}}\nAtsakymas:"
        },
        "gsm8k": {"doc_to_text": "Klausimas: {{question}}\nAtsakymas:", "until": "Klausimas:"},
        "mmlu": {
            "description": "Toliau pateikiami klausimai su keliais atsakymų variantais (ir teisingais atsakymais). "
            "Tema: {subject}.\n\n",
            "doc_to_text": "{{question.strip()}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\n"
            "D. {{choices[3]}}\nAtsakymas:",
        },
        "truthfulqa_mc2": {"doc_to_text": _TRUTHFULQA_LT + "\n\nK: {{question}}\nA:"},
    }
}

ANSWERED = {"en": ("Question", "Answer"), "lt": ("Klausimas", "Atsakymas")}
"""Prompt words of a free answer: always in the language of the question, whose fluency is measured."""

CLOZE: dict[str, dict[str, dict[str, Any]]] = {
    "en": {"belebele": {"doc_to_text": "{{flores_passage}}\n\nQuestion: {{question.strip()}}\nAnswer:"}},
    "lt": {
        "belebele": {"doc_to_text": "{{flores_passage}}\n\nKlausimas: {{question.strip()}}\nAtsakymas:"},
        "mmlu": {
            "description": "Toliau pateikiami klausimai (su atsakymais). Tema: {subject}.\n\n",
            "doc_to_text": "Klausimas: {{question.strip()}}\nAtsakymas:",
        },
    },
}
"""Prompts for the text of the answer instead of its letter: a model of a million parameters never learns letters."""

SUBJECTS: dict[str, dict[str, str]] = {
    "lt": {
        "abstract_algebra": "abstrakčioji algebra",
        "anatomy": "anatomija",
        "astronomy": "astronomija",
        "business_ethics": "verslo etika",
        "clinical_knowledge": "klinikinės žinios",
        "college_biology": "biologija (universiteto kursas)",
        "college_chemistry": "chemija (universiteto kursas)",
        "college_computer_science": "informatika (universiteto kursas)",
        "college_mathematics": "matematika (universiteto kursas)",
        "college_medicine": "medicina (universiteto kursas)",
        "college_physics": "fizika (universiteto kursas)",
        "computer_security": "kompiuterių saugumas",
        "conceptual_physics": "konceptualioji fizika",
        "econometrics": "ekonometrija",
        "electrical_engineering": "elektros inžinerija",
        "elementary_mathematics": "pradinė matematika",
        "formal_logic": "formalioji logika",
        "global_facts": "faktai apie pasaulį",
        "high_school_biology": "biologija (vidurinės mokyklos kursas)",
        "high_school_chemistry": "chemija (vidurinės mokyklos kursas)",
        "high_school_computer_science": "informatika (vidurinės mokyklos kursas)",
        "high_school_european_history": "Europos istorija (vidurinės mokyklos kursas)",
        "high_school_geography": "geografija (vidurinės mokyklos kursas)",
        "high_school_government_and_politics": "valdžia ir politika (vidurinės mokyklos kursas)",
        "high_school_macroeconomics": "makroekonomika (vidurinės mokyklos kursas)",
        "high_school_mathematics": "matematika (vidurinės mokyklos kursas)",
        "high_school_microeconomics": "mikroekonomika (vidurinės mokyklos kursas)",
        "high_school_physics": "fizika (vidurinės mokyklos kursas)",
        "high_school_psychology": "psichologija (vidurinės mokyklos kursas)",
        "high_school_statistics": "statistika (vidurinės mokyklos kursas)",
        "high_school_us_history": "JAV istorija (vidurinės mokyklos kursas)",
        "high_school_world_history": "pasaulio istorija (vidurinės mokyklos kursas)",
        "human_aging": "žmogaus senėjimas",
        "human_sexuality": "žmogaus lytiškumas",
        "international_law": "tarptautinė teisė",
        "jurisprudence": "teisės teorija",
        "logical_fallacies": "logikos klaidos",
        "machine_learning": "mašininis mokymasis",
        "management": "vadyba",
        "marketing": "rinkodara",
        "medical_genetics": "medicininė genetika",
        "miscellaneous": "įvairūs klausimai",
        "moral_disputes": "moraliniai ginčai",
        "moral_scenarios": "moralinės situacijos",
        "nutrition": "mityba",
        "philosophy": "filosofija",
        "prehistory": "priešistorė",
        "professional_accounting": "apskaita (profesinės žinios)",
        "professional_law": "teisė (profesinės žinios)",
        "professional_medicine": "medicina (profesinės žinios)",
        "professional_psychology": "psichologija (profesinės žinios)",
        "public_relations": "viešieji ryšiai",
        "security_studies": "saugumo studijos",
        "sociology": "sociologija",
        "us_foreign_policy": "JAV užsienio politika",
        "virology": "virusologija",
        "world_religions": "pasaulio religijos",
    }
}
