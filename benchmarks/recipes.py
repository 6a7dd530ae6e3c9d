"""Published ways to sample from a masked language model, and what users of transformers do, in plain words of our own.

They are what `decoding.py` measures against. Each works on any `model(input_ids, attention_mask).logits` and costs what the
published program costs, down to the number type of each pass over batch x length x vocabulary:

    mdlm            arXiv:2406.07524, kuleshov-group/mdlm at c112c52, its default sampler `ddpm_cache`
    llada           arXiv:2502.09992, ML-GSAI/LLaDA at b7e6c35, `generate`
    dllm_infill     ZHZisZZ/dllm at ca17675, `MDLMSampler.infill`
    fill_mask_loop  the fill-mask pipeline of transformers, one token a call
    ar_generate     `generate` of transformers

`python benchmarks/recipes.py` examines them.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from scipy import stats
from torch import Tensor

NEVER = -1e6  # MDLM's logit of what cannot be
LAST = 1e-5  # the time at which MDLM stops


def logits_of(model: Any, x: Tensor) -> Tensor:
    """(B, L, V)"""
    return model(input_ids=x, attention_mask=torch.ones_like(x)).logits


@torch.no_grad()
def mdlm(model: Any, x: Tensor, steps: int, mask: int) -> Tensor:
    """x (B, L) with its masks filled in `steps` equal steps of time, and a last call that removes the noise left.

    What the model said is used again only where no row of the whole batch has changed.
    """
    prior, width = None, (1 - LAST) / steps
    for t in torch.linspace(1, LAST, steps + 1)[:-1].tolist():
        prior = subs(model, x, mask).exp() if prior is None else prior
        new = mdlm_step(prior, x, t, t - width, mask)
        if not torch.equal(new, x):
            prior = None
        x = new
    return subs(model, x, mask).argmax(-1)


def subs(model: Any, x: Tensor, mask: int) -> Tensor:
    """(B, L, V) log-probabilities of x_0: never a mask, and what is visible stays ("SUBS")."""
    logits = logits_of(model, x)
    logits[..., mask] += NEVER
    log_prob = logits - logits.logsumexp(-1, keepdim=True)
    visible = x != mask
    log_prob[visible] = NEVER
    log_prob[visible, x[visible]] = 0
    return log_prob


def mdlm_step(prior: Tensor, x: Tensor, t: float, s: float, mask: int) -> Tensor:
    """x at s < t: of the mass t of a mask, s stays a mask. Drawn at every position by a race of exponentials."""
    chances = prior * (t - s)
    chances[..., mask] = s
    # in the number type of the model, as published; the tiny number keeps a zero out of the logarithm
    rivals = 1e-10 - (torch.rand_like(chances) + 1e-10).log()
    return torch.where(x == mask, (chances / rivals).argmax(-1), x)


@torch.no_grad()
def llada(
    model: Any, x: Tensor, steps: int, mask: int, *,
    block: int | None = None, temperature: float = 0.0, remasking: str = "low_confidence", prompt: int = 0,
) -> Tensor:  # fmt: skip
    """x (B, L), whose first `prompt` tokens are given and the others masks, filled block by block, `steps` calls in all.

    ValueError where blocks do not divide the text, or the steps.
    """
    x = x.clone()
    block = block or x.shape[1] - prompt
    blocks, rest = divmod(x.shape[1] - prompt, block)
    if rest or steps % blocks:
        raise ValueError(f"blocks of {block} do not divide {x.shape[1] - prompt} tokens, or {steps} steps; take others")
    for start in range(prompt, x.shape[1], block):
        quota = even((x[:, start : start + block] == mask).sum(1), steps // blocks)
        for number in range(steps // blocks):
            words, sure = guess(model, x, temperature, remasking)
            sure[:, start + block :] = -torch.inf
            reveal(x, words, sure, quota[number], mask)
    return x


@torch.no_grad()
def dllm_infill(
    model: Any, x: Tensor, steps: int, mask: int, *,
    block: int | None = None, temperature: float = 0.0, remasking: str = "low_confidence",
) -> Tensor:  # fmt: skip
    """x (B, L) with its masks filled wherever they are, block by block, `steps` calls in all or fewer."""
    x = x.clone()
    block = block or x.shape[1]
    starts = range(0, x.shape[1], block)
    for start in starts:
        window = slice(start, start + block)
        left = (x[:, window] == mask).sum(1).tolist()
        for counts in expected(left, -(-steps // len(starts))):
            words, sure = guess(model, x, temperature, remasking)
            sure[:, :start] = sure[:, start + block :] = -torch.inf
            reveal(x, words, sure, counts, mask)
    return x


def even(left: Tensor, steps: int) -> list[list[int]]:
    """How many of `left` (B,) tokens each row reveals, by step: as equal as can be, the larger numbers first."""
    return [[count // steps + (number < count % steps) for count in left.tolist()] for number in range(steps)]


def expected(left: list[int], steps: int) -> list[list[int]]:
    """The same by rounding what a linear schedule reveals on average; steps that reveal nothing are left out, row by row."""
    rows = []
    for count in left:
        row = []
        for remaining in range(steps, 0, -1):
            row.append(round(count / remaining))
            count -= row[-1]
        rows.append([number for number in row if number])
    longest = max(map(len, rows))
    return [list(counts) for counts in zip(*(row + [0] * (longest - len(row)) for row in rows), strict=True)]


def guess(model: Any, x: Tensor, temperature: float, remasking: str) -> tuple[Tensor, Tensor]:
    """A word for every position (B, L), visible ones too, and how sure of it the model is, or a random number."""
    logits = logits_of(model, x)
    words = gumbel_max(logits, temperature).argmax(-1)
    if remasking == "random":
        return words, torch.rand(x.shape)
    return words, logits.softmax(-1).gather(-1, words[..., None])[..., 0]


def gumbel_max(logits: Tensor, temperature: float) -> Tensor:
    """(B, L, V) scores, the largest of which is a draw; in float64, as arXiv:2409.02908 asks for."""
    if temperature == 0:
        return logits
    logits = logits.double()
    return logits.exp() / (-torch.rand_like(logits).log()) ** temperature


def reveal(x: Tensor, words: Tensor, sure: Tensor, counts: list[int], mask: int) -> None:
    """Write the surest words of each row, as many as `counts` says, where x (B, L) has a mask."""
    sure = torch.where(x == mask, sure, -torch.inf)
    chosen = torch.zeros_like(x, dtype=torch.bool)
    for row, count in enumerate(counts):
        chosen[row, sure[row].topk(count).indices] = True
    x[chosen] = words[chosen]


@torch.no_grad()
def fill_mask_loop(model: Any, x: Tensor, mask: int, *, order: str = "left", temperature: float = 1.0) -> Tensor:
    """x (B, L) with its masks filled one in each row a call: the leftmost, or where the model is surest ("surest")."""
    x = x.clone()
    while bool((hidden := x == mask).any()):
        row, column = hidden.nonzero(as_tuple=True)
        logits = logits_of(model, x)[row, column]  # the pipeline reads the masked places alone
        prob = logits.softmax(-1) if temperature == 0 else (logits / temperature).softmax(-1)
        urgency = prob.amax(-1) if order == "surest" else -column.to(prob.dtype)
        best = torch.full(x.shape, -torch.inf, dtype=prob.dtype).index_put((row, column), urgency).argmax(1)
        now = column == best[row]
        words = prob[now].argmax(-1) if temperature == 0 else torch.multinomial(prob[now], 1)[:, 0]
        x[row[now], column[now]] = words
    return x


@torch.no_grad()
def ar_generate(model: Any, count: int, batch: int, first: int) -> Tensor:
    """(B, count) tokens after one given, `first`, sampled with a key-value cache; the model has no end token."""
    start = torch.full((batch, 1), first)
    options = {"do_sample": True, "top_k": 0, "max_new_tokens": count, "pad_token_id": 0}
    return model.generate(start, attention_mask=torch.ones_like(start), **options)[:, 1:]


MASK, WORDS, DRAWS = 2, 12, 20_000
FALSE_ALARM = 1e-6  # of each test of frequencies

Recipe = Callable[[Any, Tensor], Tensor]


class Toy:
    """A language model that says the same at every place, whatever it sees: so the law of each token is known."""

    def __init__(self) -> None:
        self.calls = 0
        self.said = 1.5 * torch.randn(WORDS, generator=torch.Generator().manual_seed(0))
        self.said[MASK] = -1e4

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        self.calls += 1
        return SimpleNamespace(logits=self.said.repeat(*input_ids.shape, 1))


def surprise(found: Tensor, said: Tensor) -> float:
    """The chi-square test's p of tokens (S,) under the softmax of logits (V,); 0 where there is one that cannot be."""
    law = said.double().softmax(-1)
    counts = found.bincount(minlength=len(law)).double()
    can = law > 0
    if bool(counts[~can].any()):
        return 0.0
    return float(stats.chisquare(counts[can].numpy(), (law[can] / law[can].sum() * counts.sum()).numpy()).pvalue)


def states(length: int = 32) -> tuple[Tensor, Tensor]:
    """Rows of masks, and rows in which some tokens are given, 25 % to 100 % of them masked: DRAWS masks and a few more."""
    rows = -(-DRAWS // length)
    empty = torch.full((rows, length), MASK)
    share = torch.linspace(0.25, 1, rows)[:, None]
    given = torch.where(torch.rand(rows, length) < share, MASK, torch.randint(3, WORDS, (rows, length)))
    return empty, given


# Low confidence picks among words already drawn, so in several steps it has a law of its own; in one step there is nothing
# to pick, and with a random order nothing is preferred.
EXACT: dict[str, Recipe] = {
    "mdlm": lambda model, x: mdlm(model, x, 16, MASK),
    "llada, random": lambda model, x: llada(model, x, 16, MASK, temperature=1.0, remasking="random"),
    "llada, random, blocks": lambda model, x: llada(model, x, 16, MASK, block=8, temperature=1.0, remasking="random"),
    "llada, one step": lambda model, x: llada(model, x, 1, MASK, temperature=1.0),
    "dllm_infill, random": lambda model, x: dllm_infill(model, x, 16, MASK, temperature=1.0, remasking="random"),
    "dllm_infill, one step": lambda model, x: dllm_infill(model, x, 1, MASK, temperature=1.0),
    "fill_mask_loop, left": lambda model, x: fill_mask_loop(model, x, MASK),
    "fill_mask_loop, surest": lambda model, x: fill_mask_loop(model, x, MASK, order="surest"),
}
OTHERS: dict[str, Recipe] = {
    "llada, low confidence": lambda model, x: llada(model, x, 16, MASK, temperature=1.0),
    "dllm_infill, low confidence": lambda model, x: dllm_infill(model, x, 16, MASK, temperature=1.0),
}
GREEDY: dict[str, Recipe] = {
    "llada": lambda model, x: llada(model, x, 16, MASK, block=8),
    "dllm_infill": lambda model, x: dllm_infill(model, x, 16, MASK, block=8),
    "fill_mask_loop": lambda model, x: fill_mask_loop(model, x, MASK, temperature=0.0),
}


def examine(name: str, recipe: Recipe, *, exact: bool) -> None:
    """No mask is left, given tokens are kept; and the law is, or is not, the softmax of what the model says."""
    for x in states():
        model, hidden = Toy(), x == MASK
        found = recipe(model, x.clone())
        assert not bool((found == MASK).any()), f"{name} leaves masks"
        assert torch.equal(found[~hidden], x[~hidden]), f"{name} changes what was given"
        p = surprise(found[hidden], model.said)
        print(f"{name}: {int(hidden.sum())} tokens of {x.numel()}, {model.calls} calls, p = {p:.2g}", flush=True)
        assert exact == (p > FALSE_ALARM), f"{name} has {'another' if exact else 'the'} law of the model"


def examine_greedy(name: str, recipe: Recipe) -> None:
    """Every mask becomes the likeliest word."""
    for x in states():
        model = Toy()
        wanted = torch.where(x == MASK, model.said.argmax(), x)
        assert torch.equal(recipe(model, x.clone()), wanted), f"{name} is not greedy"


def examine_cache() -> None:
    """In one row MDLM asks anew only after a change: with 4 tokens no more than 6 times, in a thousand steps."""
    model = Toy()
    mdlm(model, torch.full((1, 4), MASK), 1000, MASK)
    assert 3 <= model.calls <= 6, f"{model.calls} calls for 4 tokens"


def examine_quota() -> None:
    """Both ways reveal everything; the second leaves out the steps that would reveal nothing."""
    assert even(torch.tensor([10, 3, 0]), 4) == [[3, 1, 0], [3, 1, 0], [2, 1, 0], [2, 0, 0]]
    assert expected([10, 3, 0], 4) == [[2, 1, 0], [3, 1, 0], [2, 1, 0], [3, 0, 0]]


def examine_ar() -> None:
    """A GPT-2 whose last norm answers with a constant: DRAWS tokens by the softmax of what it always says, none too few."""
    from transformers import GPT2Config, GPT2LMHeadModel

    roles = {"bos_token_id": 1, "eos_token_id": None}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=WORDS, n_embd=8, n_layer=1, n_head=2, n_positions=64, **roles)).eval()
    torch.nn.init.normal_(model.transformer.wte.weight)
    torch.nn.init.zeros_(model.transformer.ln_f.weight)
    torch.nn.init.normal_(model.transformer.ln_f.bias, std=0.5)
    found = ar_generate(model, 32, DRAWS // 32, 1)
    said = model.transformer.wte.weight @ model.transformer.ln_f.bias
    assert found.shape == (DRAWS // 32, 32), "generate stopped early"
    p = surprise(found.flatten(), said.detach())
    print(f"ar_generate: {found.numel()} tokens, p = {p:.2g}")
    assert p > FALSE_ALARM, "generate has another law than the model"


def main() -> None:
    torch.manual_seed(0)
    for name, recipe in EXACT.items():
        examine(name, recipe, exact=True)
    for name, recipe in OTHERS.items():  # the same test catches a law that is a little off
        examine(name, recipe, exact=False)
    for name, recipe in GREEDY.items():
        examine_greedy(name, recipe)
    examine_cache()
    examine_quota()
    examine_ar()
    print("every recipe is as described")


if __name__ == "__main__":
    main()
