"""Tests run one thread per process: the models are tiny, and a test process per core is faster than threads that wait.

Nothing is looked up on a network.
"""

import gc
import os
import signal
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell leaves it for what it runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Cases that take seconds while others like them are quick: slow, like tests that say so themselves.
SECONDS = (
    "test_pictures.py::test_a_run_is_known_again_in_another_process",
    "test_trainer.py::test_two_processes_are_one",
    "test_stock_continuing.py::test_two_gaps_have_the_joint_law",
    "test_stock_continuing.py::test_a_text_that_ends_in_a_gap_ends_where_the_model_ends_it",
    "test_stock_continuing.py::test_one_gap_has_the_models_law_given_the_text_on_both_sides[2]",
    "test_edit.py::test_consistency[coming-partial-aligned]",
    "test_edit.py::test_inconsistency_is_noticed[Stubborn-True]",
    "test_checkpoint.py::test_plain_transformers_opens_it",
    "test_contract.py::test_it_is_gradual[Edit]",
    "test_identities.py::test_a_perfect_denoiser_samples_all_texts[mixture-partial-2]",
    "test_identities.py::test_a_perfect_denoiser_samples_all_texts[edit-partial-2]",
    "test_alignment.py::test_a_perfect_denoiser_samples_the_data[bare-aligned-lengths-partial-2]",
    "test_edit.py::test_a_perfect_denoiser_samples_the_data[partial-2-aligned]",
    "test_edit.py::test_a_perfect_denoiser_takes_out_what_came_in[partial-2-level]",
    "test_deletion_bounds.py::test_the_schedule_does_not_matter[Power]",
    "test_mixture.py::test_a_perfect_denoiser_samples_the_data[8-posterior]",
    "test_mixture.py::test_a_perfect_denoiser_samples_the_data[8-fresh]",
    "test_pictures.py::test_accumulation_changes_nothing",
    "test_trainer.py::test_accumulation_changes_nothing[autoregressive]",
    "test_mixture.py::test_a_perfect_denoiser_samples_the_data[8-rho]",
    "test_laws.py::test_a_perfect_denoiser_samples_the_data[deletion-partial-8]",
    "test_laws.py::test_a_perfect_denoiser_samples_the_data[staged-partial-8]",
    "test_rules.py::test_the_same_for_deletion[remdm-rescale:0.8]",
    "test_rules.py::test_the_same_for_deletion[remdm-loop:0.8]",
    "test_replacement.py::test_a_perfect_denoiser_samples_the_data[mix-partial-2]",
    "test_examples_infill.py::test_an_example_runs[box-infill_batch]",
    "test_gaps.py::test_a_text_never_outgrows_the_model[seq2seq]",
    "test_guessing.py::test_it_learns_to_use_its_guess",
    "test_adapt.py::test_two_steps_from_any_pretrained_model[llama-0]",
    "test_adapt.py::test_two_steps_from_any_pretrained_model[gpt2 both ways-0]",
    "test_trainer.py::test_resume_is_exact[stops1]",
    "test_edit.py::test_the_users_text_never_changes[fresh]",
    "test_edit.py::test_the_users_text_never_changes[rho]",
    "test_rules.py::test_ten_thousand_configurations_end",
    "test_rules.py::test_words_are_drawn_by_their_probabilities",
    "test_rules.py::test_orders_of_one_token_a_step[ranked:drawn-inf-False]",
    "test_laws.py::test_partial_is_remdm[Deletion]",
    "test_deletion_bounds.py::test_rates_of_insertion_bound_tightly",
    "test_pictures.py::test_a_folder_of_idx_files",
    "test_pipelines.py::test_import_orders[textdiff first]",
    "test_automata.py::test_what_is_drawn_reads_as_asked",
    "test_manifest.py::test_adapters_are_merged_into_what_is_saved[LoHa]",
    "test_manifest.py::test_adapters_are_merged_into_what_is_saved[DoRA]",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark them before `-m` chooses."""
    for item in items:
        if item.nodeid.endswith(SECONDS):
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """What was imported stays: looked through at every collection of garbage it would take a tenth of the time."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Seed torch before each test and its fixtures, so that no test depends on those before it on the same worker."""
    import torch

    torch.manual_seed(0)


@pytest.fixture
def fresh_accelerator() -> Iterator[None]:
    """Accelerate remembers the precision of the first run of a process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
