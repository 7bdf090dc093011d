"""A small invented world in English and Lithuanian: texts, benchmark questions and a base model, for demo and tests.

    data/miniature/
      text/       train.{en,lt}.jsonl  heldout.{en,lt}.jsonl                      {"text": …}; held-out text is parallel
      questions/  {en,lt}/arc_easy/{train,validation,test}.jsonl  belebele/test.jsonl  gsm8k/{train,test}.jsonl
                  hellaswag/{train,validation}.jsonl  mmlu/{dev,validation,test}/<subject>.jsonl
                  truthfulqa/validation.jsonl  winogrande/{train,validation}.jsonl    en/fisher_text.jsonl
      model/      a Hugging Face folder: a tiny Gemma 2, pretrained on the English text, and its tokenizer
      recipe      the version of this recipe and the seed of the world

`python -m examples.miniature` makes it. `sweeps/miniature.toml` names these files, as an experiment names any others.
`files.build` writes texts and questions in pure Python, in seconds; `base_model.make` pretrains the model in a minute.
"""
