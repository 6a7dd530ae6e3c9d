"""Writes docs/processes.md: every process with every rule, what it reproduces, and the test that proves it.

Run: python docs/make_processes.py. The rows are below; which tests assert an identity is read from the tests' docstrings.
"""

import ast
import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "processes.md"


class Cell(NamedTuple):
    """A row of the table."""

    process: str
    rule: str
    data: str
    system: str
    proof: str
    command: str


MASK, REPLACE = "textdiff train --diffusion.process masking", "textdiff train --diffusion.process replacement"
DRAW, BLUR = "textdiff generate runs/digits", "textdiff generate runs/digits-blur"
CELLS = [
    Cell("`Masking`", "`fresh`", "text", "Su's baseline; Mask-Predict with random positions",
         "test_laws.py::test_a_perfect_denoiser_samples_the_data", f"{MASK} --diffusion.rule fresh"),
    Cell("`Masking`", "`posterior`", "text", "D3PM-absorbing, MDLM, MD4, LLaDA `random`",
         "test_mdlm.py::test_the_weighted_loss_is_mdlm", f"{MASK} --diffusion.rule posterior"),
    Cell("`Masking`", "`partial:RHO`", "text", "ReMDM, sigma = RHO (1 - alpha_s)",
         "test_laws.py::test_partial_is_remdm", f"{MASK} --diffusion.rule partial:0.3"),
    Cell("`Masking`", "`ranked`", "text", "MaskGIT, LLaDA `low_confidence`: a heuristic, biased",
         "test_laws.py::test_imperfect_samplers_are_noticed", f"{MASK} --diffusion.rule ranked"),
    Cell("`Masking(counts=True)`", "`posterior`", "text", "Su's mask model, t of l tokens; one token a step: any-order AR",
         "test_counts.py::test_a_step_hides_a_uniform_subset", f"{MASK} --diffusion.counts"),
    Cell("`Masking(spans=...)`", "`posterior`", "text", "SpanBERT's spans, a mask per token, as noise",
         "test_counts.py::test_the_bound_of_spans", f"{MASK} --noise.spans 1 3"),
    Cell("`Deletion`", "`posterior`", "text", "one marker per span, as in T5 and GLM: gaps of unknown length",
         "test_laws.py::test_a_perfect_denoiser_samples_the_data", "textdiff train --diffusion.process deletion"),
    Cell("`Deletion`, one step", "any", "text", "language modelling, seq2seq infilling; exact likelihood",
         "test_laws.py::test_one_step_is_language_modelling",
         "textdiff train --config data/demo-autoregressive.yaml"),
    Cell("`Deletion(staged=True)`", "`posterior`", "text", "delete-then-mask: lengths, then words",
         "test_deletion_bounds.py::test_lengths_and_then_masks", "textdiff train --config data/demo.yaml"),
    Cell("`Deletion(empty=0)`", "`posterior`", "text", "deletion without markers: Insertion Transformer, ILM",
         "test_alignment.py::test_bare_deletion_by_its_numbers", ""),
    Cell("`Replacement`", "`fresh`", "text", "Su's edit model, version A",
         "test_replacement.py::test_a_perfect_denoiser_samples_the_data", f"{REPLACE} --diffusion.rule fresh"),
    Cell("`Replacement`", "`posterior`", "text", "multinomial DDIM at sigma = beta_s / beta_t, DNDM",
         "test_replacement.py::test_it_is_multinomial_ddim", REPLACE),
    Cell("`Replacement`", "`partial:RHO`", "text", "multinomial DDIM, sigma = (1 - RHO) beta_s / beta_t",
         "test_replacement.py::test_it_is_multinomial_ddim", f"{REPLACE} --diffusion.rule partial:0.3"),
    Cell("`Replacement(different=True, counts=True)`", "`posterior`", "text",
         "Su's edit model, version B: x0_hat differs in just t places",
         "test_counts.py::test_changes", f"{REPLACE} --diffusion.different --diffusion.counts"),
    Cell("`Replacement(masked=...)`", "`posterior`", "text", "masks and random words: VQ-Diffusion's and GIDD's noise",
         "test_replacement.py::test_a_perfect_denoiser_samples_the_data", f"{REPLACE} --diffusion.masked 0.5"),
    Cell("`Edit`", "`posterior`", "text", "deletion, masks, replacement, insertion: DiffusER's edits",
         "test_edit.py::test_a_perfect_denoiser_samples_the_data", "textdiff train --diffusion.process edit"),
    Cell("`Mixture`", "any of its parts'", "text", "one model that fills, lengthens and corrects",
         "test_mixture.py::test_a_perfect_denoiser_samples_the_data",
         "textdiff train --diffusion.process deletion+edit --diffusion.staged"),
    Cell("`Encoder`", "`posterior`, `sde`, `ode`", "text", "Su's encoder model: Diffusion-LM with a normalised F",
         "test_encoder.py::test_a_perfect_denoiser_samples_the_data", "textdiff train --diffusion.process encoder"),
    Cell("any", "any, from t < 1", "text", "rewriting a draft (SDEdit, for text)",
         "test_refine.py::test_a_perfect_denoiser_gives_the_data_from_any_time",
         'textdiff refine runs/demo "We must act." --t 0.3'),
    Cell("`VariancePreserving`", "`sde:1`", "images", "DDPM",
         "test_diffusers.py::test_ddpm", f"{DRAW} --rule sde:1 --num-steps 250"),
    Cell("`VariancePreserving`", "`posterior`, `ode`", "images", "DDIM, eta = 0; the probability-flow ODE's first-order step",
         "test_diffusers.py::test_ddim", f"{DRAW} --rule posterior --num-steps 50"),
    Cell("`VariancePreserving`", "`sde:ETA`", "images", "DDIM at eta; steps of the lambda-SDE",
         "test_images.py::test_small_steps_are_an_sde", f"{DRAW} --rule sde:0.5"),
    Cell("`VariancePreserving`", "`fresh`", "images", "Su's baseline, eta = 1 / sqrt(1 - SNR_t / SNR_s)",
         "test_images.py::test_the_numbers_of_ddpm", f"{DRAW} --rule fresh"),
    Cell("`VariancePreserving` with a measured variance", "any", "images", "Analytic-DPM",
         "test_images.py::test_total_variance", "textdiff train --config data/digits.yaml --variance 50"),
    Cell("`VarianceExploding`", "`sde:ETA`, `ode`", "images", "NCSN's and Karras's noise",
         "test_images.py::test_a_perfect_denoiser_samples_the_data",
         "textdiff train --config data/digits.yaml --diffusion.process ve"),
    Cell("`Blur`", "`fresh`", "images", "Naive Sampling; with noise inverse heat dissipation",
         "test_images.py::test_cold_steps_by_their_formulas", f"{BLUR} --rule fresh"),
    Cell("`Blur`", "`posterior`", "images", "Cold Diffusion's Improved Sampling",
         "test_images.py::test_improved_sampling_forgives_a_wrong_guess", f"{BLUR} --rule posterior"),
    Cell("`Pixelation`", "`fresh`, `posterior`", "images", "nested averages, Naive and Improved",
         "test_images.py::test_nested_degradations_keep_what_is_seen",
         "textdiff train --config data/digits-blur.yaml --diffusion.process pixelation --diffusion.highest None"),
    Cell("`PixelMask`", "`posterior`", "images", "pixels revealed in a fixed order",
         "test_images.py::test_pixel_masks_are_revealed",
         "textdiff train --config data/digits-blur.yaml --diffusion.process pixel-mask --diffusion.highest None"),
]  # fmt: skip

BOUNDS = [
    ("`Masking`", "parallel", "bound, length given", "K-uniform form of int beta'/beta sum -log q dt; spans by their own law"),
    ("`Deletion(staged=True)`", "parallel", "bound", "-log q(lengths) + the bound of masking"),
    ("`Deletion`", "autoregressive", "exact, in one step", "-log q(x_0 | [GAP])"),
    ("`Deletion(empty=0)` *", "rates of insertion", "bound", "int beta'/beta E[sum lambda - k - sum log(lambda p)] dt, no k log k"),
    ("`Replacement`", "parallel", "bound, length given", "KL of 128 steps, closed form; `steps=0` is the integral, for models told t"),
    ("`Replacement(counts=True)`", "any", "loose bound, length given", "Su's loss summed over single changes"),
    ("`Edit`", "parallel", "bound", "that of delete-then-mask, which the same model can be run as"),
    ("`Mixture`", "", "that of its first process", ""),
    ("`Encoder`", "parallel", "loose bound, length given", "-log q(x_0 | x_1), one step"),
    ("`VariancePreserving`, `VarianceExploding` *", "U-Net, DiT", "bound", "int 1/2 (-SNR') |x_0 - x0_hat|^2 dt, up to the last step"),
]  # fmt: skip


def identities() -> dict[int, list[str]]:
    """The tests that say which identity they assert, `file::name`, by its number."""
    found: dict[int, list[str]] = {}
    for file in sorted((ROOT / "tests").glob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                said = re.findall(r"[Ii]dentit(?:y|ies) ([\d, and]+)", ast.get_docstring(node) or "")
                for number in {int(n) for part in said for n in re.findall(r"\d+", part)}:
                    found.setdefault(number, []).append(f"{file.name}::{node.name}")
    return found


STATED = {
    1: "rho = .5, alpha .3 to .6: visible to mask .2, mask stays .4857142857; ReMDM with sigma = .2",
    2: "sum over x_t of p(x_s | x_t, x_0) q(x_t | x_0) is q(x_s | x_0), for every process and rho",
    3: "with the exact posterior the samples are the data, whatever the rule and the number of steps",
    4: "one token a step from true marginals is exact in any order chosen from x_t; by the drawn token's it is biased",
    5: "replacement, beta .7 to .4: stays 4/7, x_0 3/7; multinomial DDIM for all rho; D3PM's weights are others",
    6: "deletion of 01001 seen as 01: N = 4, .12348; 64/343, 72/343, 54/343, 27/343",
    7: "embeddings are drawn uniformly; the leftmost one is wrong",
    8: "alpha .6 / .8: sigma^2 = .68359375, DDPM's .24609375, the baseline's eta 1.2094863; DDIM's formula",
    9: "constant surprise log V costs L log V for every schedule; times (T + 1)(T + 2) / (6 T) for the baseline",
    10: "the bound of T steps tends to the integral, from above for a consistent model",
    11: "deletion's bound with optimal rates is the entropy; a certain string costs 0; with k log k it is larger",
    12: "the same for delete and mask",
    13: "x0_hat differs from x_t in exactly t places; after a step in t - 1",
    14: "mixture and plug-in differ for replacement, and agree after tilting",
    15: "insertions survive by their odds; counts are hypergeometric; the next token shows at beta U^(1/K)",
    16: "nested pixelation keeps A_t x_s = x_t under the posterior, not under the baseline; pixel masks are revealed",
    17: "one step is plain language modelling; fillings contain what is seen",
    18: "what is the user's never changes",
    19: "small steps: (x_t - x_s) / dt is f x - (1 + lambda^2) / 2 g^2 score",
    20: "the prior gap of words that must differ: log(V / (V - 1)) each",
    21: "the KL of a step is at most -log q(x_0 | x_t)",
}


def _cell(text: str) -> str:
    """A bar within a table's cell is no border."""
    return text.replace("|", "\\|")


def page() -> str:
    """The whole page."""
    rows = [
        f"| {c.process} | {c.rule} | {c.data} | {c.system} | `{c.proof}` | {f'`{c.command}`' if c.command else 'from Python'} |"
        for c in CELLS
    ]
    bounds = [f"| {process} | {model} | {kind} | {_cell(how)} |" for process, model, kind, how in BOUNDS]
    tests = identities()
    laws = [
        f"| {n} | {_cell(said)} | {', '.join(f'`{t}`' for t in sorted(set(tests.get(n, []))))} |"
        for n, said in STATED.items()
    ]
    return "\n".join(
        [
            "# Processes, rules, and what they reproduce",
            "",
            "Written by `python docs/make_processes.py`; a test compares. Proofs are in `tests/`.",
            "A rule says which noise goes back in: `fresh` new noise, `posterior` the noise that explains x_t, `partial:RHO` that",
            "with a share RHO redrawn, `ranked` dealt out by confidence, `sde:SCALE` and `ode` steps of the SDE and the ODE.",
            "All rules are in `docs/rules.md`.",
            "",
            "| process | rule | data | reproduces | proof | command |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            "`DiscreteDDIMScheduler` of diffusers is, in spite of its name, D3PM's Markov posterior: the same kernel as `Replacement`'s",
            "in the step from t = 1 (as `fresh`) and in the one to s = 0, where the probabilities agree to 1e-6",
            "(`test_replacement.py::test_the_scheduler_of_diffusers`); in between it is another one.",
            "Second-order steps (Heun, multistep) are left out: they ask the network twice, or remember the step before, and a rule",
            "is a function of one draw.",
            "",
            "## Likelihoods",
            "",
            "What `textdiff evaluate` prints for texts, in nats per token and bits per byte with a standard error. The rows marked * are",
            "from Python alone: rates of insertion have no stock model that is trained to say them, and images are scored by their samples.",
            "",
            "| process | model | figure | how |",
            "|---|---|---|---|",
            *bounds,
            "",
            "## Identities",
            "",
            "| | identity | asserted by |",
            "|---|---|---|",
            *laws,
            "",
        ]
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")
