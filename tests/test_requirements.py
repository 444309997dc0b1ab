"""Each requirement of the three course briefs (A, B, C), and the test or command that satisfies it.

A name of a test is looked up in all test files; a command must name a module that exists; a path
must exist. The requirements are those of a GPT-2 on one GPU (A), on TinyStories (B), and with
modern parts (C).
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

SATISFIED = {
    "A1": "test_data_sets_are_streamed_from_the_hub_and_then_need_no_network",
    "A2": "python train.py --vocab-size 32000",
    "A3": "test_the_tokenizer_learns_from_the_training_text_alone",
    "A4": "test_a_saved_tokenizer_is_the_same_tokenizer",
    "A5": "test_learned_positions_end_and_sinusoidal_ones_go_on",
    "A6": "test_multi_head_attention_equals_pytorchs_own",
    "A7": "test_gelu_is_the_tanh_form",
    "A8": "test_forward_pass_equals_gpt2s",
    "A9": "test_every_combination_of_options_learns",
    "A10": "test_presets_have_exactly_gpt2s_parameters",
    "A11": "test_shapes_and_shift",
    "A12": "test_only_matrices_decay",
    "A13": "test_warm_up_then_cosine_down_to_the_minimum",
    "A14": "python train.py --seq-len 128",
    "A15": "python train.py --batch-size 16",
    "A16": "test_accumulation_is_the_one_large_batch_also_when_targets_are_uneven",
    "A17": "test_a_run_learns_and_logs",
    "A18": "test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit",
    "A19": "README.md",
    "A20": "test_evaluation_needs_the_run_alone_and_repeats_the_figure_of_training",
    "A21": "test_table_report_and_plots_show_every_size",
    "A22": "test_greedy_generation_takes_the_most_probable_token_each_time",
    "A23": "python -m gpt2.generate demo --strategy top-k --top-k 50",
    "A24": "python -m gpt2.generate demo --strategy top-p --top-p 0.9",
    "A25": "test_the_command_writes_table_figures_texts_and_plot",
    "A26": "test_figures_come_from_the_files_and_formulas_from_the_options",
    "A27": "test_figures_come_from_the_files_and_formulas_from_the_options",
    "A28": "test_long_samples_are_cut_and_it_is_said",
    "A29": "test_backends_compute_causal_attention_and_its_gradient",
    "B1": "gpt2/model.py",
    "B2": "test_tinystories_are_all_found",
    "B3": "test_sinusoidal_positions_follow_vaswani",
    "B4": "test_scaled_attention_is_basic_attention_on_scaled_queries",
    "B5": "test_swiglu_gates_with_silu",
    "B6": "test_a_step_on_our_kernels_keeps_the_error_budget",
    "B7": "gpt2/model.py",
    "B8": "python train.py --n-layer 12",
    "B9": "test_initialisation_is_gpt2s",
    "B10": "test_the_padding_of_the_vocabulary_is_invisible",
    "B11": "test_shapes_and_shift",
    "B12": "test_is_within_the_error_budget_for_every_chunking",
    "B13": "test_only_matrices_decay",
    "B14": "test_presets_have_exactly_gpt2s_parameters",
    "B15": "test_epochs_set_the_number_of_steps",
    "B16": "test_generation_ends_at_the_stop_token_and_fills_rows_that_ended_first",
    "B17": "python -m gpt2.evaluate demo --data tinystories --split test",
    "B18": "test_findings_follow_the_numbers",
    "B19": "test_figures_come_from_the_files_and_formulas_from_the_options",
    "B20": "test_figures_come_from_the_files_and_formulas_from_the_options",
    "B21": "test_figures_come_from_the_files_and_formulas_from_the_options",
    "B22": "test_findings_follow_the_numbers",
    "B23": "test_commands_run_in_their_order",
    "B24": "gpt2/pretrained_demo/model.safetensors",
    "B25": "gpt2/pretrained_demo/report.pdf",
    "B26": ".github/demo-page.png",
    "B27": "test_imports_run_one_way",
    "C1": "test_the_module_checks_itself",
    "C2": "test_scaled_attention_is_basic_attention_on_scaled_queries",
    "C3": "test_scaled_attention_is_basic_attention_on_scaled_queries",
    "C4": "test_multi_head_attention_equals_pytorchs_own",
    "C5": "test_causal_mask_shows_the_past_and_the_window_cuts_it",
    "C6": "test_quicknorm_divides_by_the_root_mean_square",
    "C7": "test_quicknorm_keeps_the_mean_that_layernorm_removes",
    "C8": "test_swiglu_gates_with_silu",
    "C9": "test_swiglu_has_the_parameters_of_the_gelu_layer",
    "C10": "test_gelu_is_the_tanh_form",
    "C11": "test_tying_saves_one_embedding_matrix",
    "C12": "test_sinusoidal_positions_follow_vaswani",
    "C13": "test_sinusoidal_positions_have_no_parameters",
    "C14": "test_a_step_on_our_kernels_keeps_the_error_budget",
    "C15": "test_forward_pass_equals_gpt2s",
    "C16": "test_greedy_generation_takes_the_most_probable_token_each_time",
    "C17": "gpt2/attention.py",
    "C18": "python -m gpt2.attention",
    "C19": "pytest",
    "C20": "pytest",
    "C21": "README.md",
    "C22": "README.md",
    "C23": "test_imports_run_one_way",
    "C24": "gpt2/layers.py",
    "C25": "README.md",
    "C26": "README.md",
}


def _tests() -> set[str]:
    return {
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_every_requirement_is_named():
    counts = {"A": 29, "B": 27, "C": 26}
    assert set(SATISFIED) == {f"{k}{i}" for k, n in counts.items() for i in range(1, n + 1)}


def test_what_satisfies_it_exists():
    tests = _tests()
    for requirement, by in SATISFIED.items():
        if by.startswith("test_"):
            assert by in tests, requirement
        elif by.startswith("python"):
            module = re.search(r"(train\.py|-m ([\w.]+))", by)
            assert module, requirement
            path = (module[2] or "train.py").replace(".", "/") if module[2] else "train.py"
            found = ROOT / path
            assert (
                found.exists()
                or found.with_suffix(".py").exists()
                or (found / "__main__.py").exists()
            )
        elif by != "pytest":
            assert (ROOT / by).exists(), requirement


@pytest.mark.parametrize(
    ("requirement", "words"),
    [
        ("A19", ["Colab", "Kaggle", "T4"]),
        ("C21", ["conda create", "pip install -e ."]),
        ("C22", ["macOS", "Windows", "Linux", "Apple"]),
        ("C25", ["No module named torch", "symptom"]),
        (
            "C26",
            ["Shazeer 2020", "Touvron", "Press and Wolf", "Kumar and Tsvetkov", "Su et al. 2021"],
        ),
    ],
)
def test_the_readme_has_what_a_brief_wants_to_read(requirement, words):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(word in readme for word in words), requirement
