"""The base model: a byte-fallback BPE tokenizer like Gemma's, and a tiny Gemma 2 pretrained on the English text.

It has everything that sets Gemma 2 apart: tied embeddings, soft caps on attention scores and logits, a layer with a
sliding window before a global one, grouped-query attention, norms before and after each block.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn import functional
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast

from examples.miniature import files
from hpc_ewc import records

VOCABULARY: Final = 1000
# ids 0 to 3, as in Gemma
SPECIAL: Final = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
CONTEXT: Final = 512

STEPS: Final = 700
SEQUENCE_LENGTH: Final = 128
BATCH_SIZE: Final = 8  # sequences a step
LEARNING_RATE: Final = 5e-3
WARMUP_STEPS: Final = 30
SEED: Final = 0
THREADS: Final = 2  # more threads do not help a model of this size, and sums would round differently


def make(folder: Path) -> Path:
    """Train tokenizer and model on `folder/text` into `folder/model`, unless they are there; return `folder/model`.

    fp32 on the CPU. The weights are the same for the same versions of torch and tokenizers and number of threads.
    """
    place = folder / "model"
    if files.is_pretrained(folder):
        return place
    text = {language: _documents(folder / "text" / f"train.{language}.jsonl") for language in ("en", "lt")}
    tokenizer = train_tokenizer(text["en"] + text["lt"])
    with _threads(min(THREADS, os.cpu_count() or 1)):
        model = build_model(tokenizer)
        pretrain(model, pack(tokenizer, text["en"], SEQUENCE_LENGTH), STEPS)
    beside = folder / f".model.{os.getpid()}"
    _save(beside, model, tokenizer)
    if place.is_dir() and not files.is_pretrained(folder):
        shutil.rmtree(place)  # a file of it is missing
    files.move_into_place(beside, place)
    return place


def train_tokenizer(documents: list[str], vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """A BPE tokenizer that writes spaces as "▁", splits numbers into digits, falls back to bytes and puts BOS first.

    The post-processor adds BOS, as in Gemma: evaluation and packing rely on the tokenizer alone for it.
    """
    trained = _untrained_bpe()
    trained.train_from_iterator(
        documents,
        trainers.BpeTrainer(vocab_size=vocabulary - 256, special_tokens=list(SPECIAL.values()), show_progress=False),
    )
    model = json.loads(trained.to_str())["model"]
    learnt = sorted(model["vocab"], key=model["vocab"].__getitem__)[len(SPECIAL) :]
    # The bytes are ordinary entries, not special tokens: decoding must not skip them.
    entries = [*SPECIAL.values(), *(f"<0x{byte:02X}>" for byte in range(256)), *learnt]
    vocab = {entry: i for i, entry in enumerate(entries)}
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = _untrained_bpe(vocab, merges)
    tokenizer.add_special_tokens(list(SPECIAL.values()))
    bos = tokenizer.token_to_id("<bos>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos>:0 $A:0", pair="<bos>:0 $A:0 <bos>:1 $B:1", special_tokens=[("<bos>", bos)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        **SPECIAL,
    )


def _untrained_bpe(vocab: dict[str, int] | None = None, merges: list[Any] | None = None) -> Any:
    unknown = SPECIAL["unk_token"]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token=unknown, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never", split=True),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Punctuation("isolated"),
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def build_model(tokenizer: PreTrainedTokenizerFast) -> Gemma2ForCausalLM:
    """A Gemma 2 of 2 layers and about 0.4 million parameters, with random weights drawn from `SEED`."""
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        query_pre_attn_scalar=32,
        sliding_window=64,
        max_position_embeddings=CONTEXT,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
        tie_word_embeddings=True,
        # Gemma scales embeddings by sqrt(hidden_size) = 11.3: at this width, about unit variance into the first block.
        initializer_range=0.09,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        attn_implementation="eager",  # the one attention of transformers on a CPU that applies the soft cap
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return Gemma2ForCausalLM(config).float()


def pack(tokenizer: PreTrainedTokenizerFast, documents: list[str], sequence_length: int) -> torch.Tensor:
    """Token ids [N, sequence_length] int64: all documents, each between BOS and EOS, one after another, cut."""
    ids = [i for document in tokenizer(documents)["input_ids"] for i in (*document, tokenizer.eos_token_id)]
    rows = len(ids) // sequence_length
    return torch.tensor(ids[: rows * sequence_length]).view(rows, sequence_length)


def pretrain(model: Gemma2ForCausalLM, rows: torch.Tensor, steps: int) -> None:
    """Next-token training in place: AdamW, linear warm-up, cosine to zero. Prints a line every 50 steps on stderr.

    Args:
        model: fp32, on the CPU.
        rows: [N, T] int64 token ids, seen in a new random order each time around.
        steps: of `BATCH_SIZE` rows.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARMUP_STEPS) * 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    model.train()
    started = time.monotonic()
    for step, batch in zip(range(1, steps + 1), _batches(rows), strict=False):
        logits = model(input_ids=batch, use_cache=False).logits[:, :-1]
        loss = functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == steps:
            seconds = time.monotonic() - started
            sys.stderr.write(f"miniature: step {step}/{steps}  loss {loss.item():.3f}  {seconds:.0f} s\n")
            sys.stderr.flush()
    model.eval()


def _batches(rows: torch.Tensor) -> Iterator[torch.Tensor]:
    """An endless stream of batches [BATCH_SIZE, T]."""
    generator = torch.Generator().manual_seed(SEED)
    while True:
        yield from torch.split(rows[torch.randperm(len(rows), generator=generator)], BATCH_SIZE)


def _documents(path: Path) -> list[str]:
    return [row["text"] for row in records.read_lines(path)]


@contextlib.contextmanager
def _threads(n: int) -> Iterator[None]:
    """Run torch on `n` threads, then restore the number it had."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _save(folder: Path, model: Gemma2ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write a Hugging Face folder, every file flushed to the disk."""
    # Tied embeddings are written once, as by `save_pretrained`, which would show a progress bar.
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    records.write_bytes(folder / "model.safetensors", safetensors.torch.save(tensors, metadata={"format": "pt"}))
    model.config.dtype = "float32"
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for file in folder.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
