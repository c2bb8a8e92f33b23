"""Distillation of language models, a module for each part.

- `pairs`: `Example`, a prompt with its answer, and `load_pairs` for one's own file
- `corpus`, `judging`: a small language whose answers can be judged exactly
- `tokenizers`: `Words` and `Characters`, and batches of numbers
- `gpt`: `GPT`, a small transformer to read, and its `Cache`
- `sampling`: `generate` answers, alone or mixed with the teacher's; `LanguageModel` says what a
  network must offer for it
- `divergences`: `divergence` of two next-token distributions; `linear_divergence` for large
  vocabularies
- `objectives`: SFT, a divergence at given prefixes (KD, GKD)
- `minillm`: MiniLLM, the policy gradient
- `sources`: where batches come from
- `training`: the methods, and `fit`
- `hf`: models and tokenizers of Hugging Face in the same places (import it by itself)
- `metrics`: Rouge-L, validity, calibration, exposure bias, divergences of whole answers
"""

from kdlib.language import corpus, metrics, objectives, tokenizers
from kdlib.language.divergences import divergence, linear_divergence
from kdlib.language.gpt import GPT, Cache
from kdlib.language.judging import Verdict, judge
from kdlib.language.pairs import Example, load_pairs
from kdlib.language.sampling import Generated, LanguageModel, distribution, generate, mixture
from kdlib.language.tokenizers import Characters, Words
from kdlib.language.training import fit, fresh, trained

__all__ = [
    "Cache",
    "Characters",
    "Example",
    "GPT",
    "Generated",
    "LanguageModel",
    "Verdict",
    "Words",
    "corpus",
    "distribution",
    "divergence",
    "fit",
    "fresh",
    "generate",
    "judge",
    "linear_divergence",
    "load_pairs",
    "metrics",
    "mixture",
    "objectives",
    "tokenizers",
    "trained",
]
