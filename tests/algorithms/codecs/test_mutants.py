"""Every codec, and every worker that applies one: change one sign, operator or number, and a test fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch

from algorithms.codecs import CODECS
from algorithms.codecs.codec import pack, packed_bytes, unpack
from tests.algorithms.codecs import test_charged as charged
from tests.algorithms.codecs import test_codecs as alone
from tests.algorithms.codecs import test_compressing as means
from tests.algorithms.codecs import test_sent as sent
from tests.algorithms.mutation import Mutant, Trial, cases


def costs(name: str) -> None:
    """Assert the bytes touched, of all settings of a codec."""
    for made, passes, kept, changed in alone.COSTS:
        if type(made) is CODECS[name].load():
            alone.test_bytes_touched_in_closed_form(made, passes, kept, changed)


def sizes() -> None:
    alone.test_sizes_are_those_of_the_card()
    alone.test_theoretical_bits_stand_below_what_is_sent()
    alone.test_contractions()


def kept(*names: str) -> None:
    """Assert that what is sent and what is kept are all there was."""
    for made in alone.LOSSY:
        if type(made) in [CODECS[name].load() for name in names]:
            alone.test_what_is_sent_and_what_is_kept_are_all_there_was(made)


def packing() -> None:
    random = np.random.default_rng(0)
    for elements, width in ((1, 1), (9, 3), (40, 17), (64, 8)):
        codes = torch.from_numpy(random.integers(0, 2**width, elements))
        assert len(pack(codes, width)) == packed_bytes(elements, width)
        assert torch.equal(unpack(pack(codes, width), elements, width), codes)
    alone.test_packing_by_hand()


def codec() -> None:
    packing()
    alone.test_a_slice_of_the_model_keeps_whole_rows()
    charged.test_a_message_says_what_it_is_charged()
    sizes()
    for name in CODECS:
        if name != "powersgd":
            costs(name)
    kept("top-k", "sign")
    alone.test_qsgd_rounds_as_the_recursion("norm", 4, 8)
    means.test_compressed_synchronous_sgd_is_its_recursion("top-k", 3)
    means.test_compressed_synchronous_sgd_is_its_recursion("terngrad", 2)
    sent.test_bytes_of_pushes("terngrad", 3, 2)
    charged.test_a_bucket_without_an_element_in_hand_is_a_message_all_the_same("terngrad", "bf16")


def qsgd() -> None:
    for levels, bucket in ((1, 0), (4, 8), (7, 5), (100, 30)):
        for scaling in ("norm", "max"):
            alone.test_qsgd_rounds_as_the_recursion(scaling, levels, bucket)
    alone.test_a_level_never_leaves_its_bits()
    sizes()
    costs("qsgd")
    sent.test_messages_without_numerics_have_the_size_of_the_formula("a-psgd", "qsgd")
    means.test_compressed_synchronous_sgd_is_its_recursion("qsgd", 3)


def terngrad() -> None:
    alone.test_the_mean_of_terngrad_has_few_values()
    sizes()
    costs("terngrad")
    means.test_compressed_synchronous_sgd_is_its_recursion("terngrad", 3)
    means.test_bytes_over_all_workers_are_those_of_the_card("terngrad", "ideal", 3)
    sent.test_compressed_gossip_is_its_recursion("terngrad", 3, "ring")


def topk() -> None:
    alone.test_the_largest_coordinates_are_sent_and_of_equal_ones_the_lower()
    alone.test_random_coordinates_are_sent_as_they_are()
    sizes()
    kept("top-k", "random-k")
    for name in ("top-k", "random-k"):
        costs(name)
    for case in ("top-k", "random-k", "random-k-own"):
        means.test_compressed_synchronous_sgd_is_its_recursion(case, 2)


def dgc() -> None:
    alone.test_the_density_of_deep_gradient_compression_falls_in_its_warm_up()
    for masking in (True, False):
        alone.test_deep_gradient_compression_follows_its_recursion(masking)
    sizes()
    kept("dgc")
    alone.test_a_gradient_of_zero_is_not_clipped()
    costs("dgc")


def sign() -> None:
    alone.test_signs_are_packed_as_the_recursion_packs_them()
    sizes()
    kept("sign")
    costs("sign")


def powersgd() -> None:
    alone.test_powersgd_is_exact_for_matrices_of_its_rank()
    for matrices in ("layers", "square"):
        alone.test_sent_and_kept_of_powersgd_agree_summed_over_workers(matrices)
    alone.test_a_factor_that_vanishes_starts_afresh()
    alone.test_bytes_touched_by_powersgd()
    alone.test_the_matrices_of_a_message()
    alone.test_a_model_without_a_matrix_is_refused()
    means.test_buckets_that_cut_a_matrix_keep_its_rows()
    alone.test_columns_are_orthonormal_to_the_last_bits()
    sizes()
    for case in ("powersgd", "powersgd-square"):
        means.test_compressed_synchronous_sgd_is_its_recursion(case, 3)


def single() -> None:
    for name in CODECS:
        if name != "powersgd":
            costs(name)
    sent.test_compressed_gossip_is_its_recursion("terngrad", 3, "ring")
    sent.test_compressed_pushes_are_their_recursion("dgc", 3, 2)
    for case in ("terngrad", "sign"):
        sent.test_bytes_of_pushes(case, 3, 2)
        sent.test_messages_without_numerics_have_the_size_of_the_formula("choco-sgd", case)


def pushing() -> None:
    for case in ("qsgd", "random-k", "dgc"):
        sent.test_compressed_pushes_are_their_recursion(case, 3, 2)
        sent.test_bytes_of_pushes(case, 3, 2)
    sent.test_messages_without_numerics_have_the_size_of_the_formula("a-psgd", "dgc")
    sent.test_encoding_and_decoding_of_messages_take_time()
    sent.test_the_messages_of_a_channel_stay_in_order()
    sent.test_a_message_of_another_length_is_named()
    charged.test_compressed_messages_are_those_of_the_cost_model("dgc", "parameter-server")


def gossiping() -> None:
    for case in ("qsgd", "random-k"):
        sent.test_compressed_gossip_is_its_recursion(case, 3, "ring")
    sent.test_compressed_gossip_is_its_recursion("top-k", 1, "ring")
    sent.test_messages_are_numbered("choco-sgd")
    sent.test_bytes_of_gossip("sign")
    sent.test_messages_without_numerics_have_the_size_of_the_formula("choco-sgd", "qsgd")
    sent.test_encoding_and_decoding_of_messages_take_time()
    charged.test_compressed_messages_are_those_of_the_cost_model("sign", "choco-sgd")


def compressing() -> None:
    for case in ("dgc", "terngrad", "powersgd", "powersgd-square"):
        means.test_compressed_synchronous_sgd_is_its_recursion(case, 3)
    means.test_each_bucket_has_a_residual_of_its_own()
    for name, overlapped in (("local-sgd", False), ("cocod-sgd", True)):
        means.test_models_are_compressed_as_differences(name, overlapped, 0.15)
    for batches in ("equal", "proportional"):
        for algorithm in ("allreduce-sgd", "local-sgd"):
            means.test_a_codec_that_loses_nothing_changes_nothing(algorithm, batches)
    for case in ("terngrad", "powersgd-square"):
        means.test_a_run_without_numerics_sends_what_the_formula_says("allreduce-sgd", case)
        charged.test_a_bucket_without_an_element_in_hand_is_a_message_all_the_same(case, "fp32")
        means.test_a_slow_worker_does_not_change_the_order(case)
        means.test_compressed_synchronous_sgd_is_its_recursion(case, 1)
    means.test_encoding_and_decoding_take_time()
    means.test_factors_take_time()
    means.test_a_message_of_equal_shares_is_encoded_as_it_is()
    means.test_an_exact_collective_waits_for_the_means_before_it()
    means.test_what_is_evaluated_is_compressed_too()
    sent.test_messages_are_numbered("allreduce-sgd")
    sent.test_bytes_of_pushes("sign", 2, 1)
    sent.test_bytes_of_gossip("sign")
    means.test_collectives_come_in_one_order()
    means.test_faults_of_an_algorithm_are_named()
    means.test_the_anchor_is_the_mean_before_although_it_is_still_under_way()
    means.test_the_state_of_an_update_rule_is_averaged_as_it_is()
    charged.test_compressed_means_are_those_of_the_cost_model("powersgd", "local-sgd")
    for workers in (1, 3):
        charged.test_empty_buckets_carry_nothing(workers)
    for buckets in (False, True):
        charged.test_slices_of_any_kind_are_charged(buckets)


def registry() -> None:
    alone.test_every_entry_loads_and_documents_its_parameters("qsgd")
    alone.test_an_unknown_codec_is_named_with_the_nearest()


def trial(name: str, check: Callable[[], None], equivalent: Mapping[str, str] | None = None) -> Trial:
    return Trial(f"algorithms.codecs.{name}", check, equivalent or {}, decisions=True)


TRIALS = (
    trial(
        "codec",
        codec,
        {
            "within: end - start -> end + start": "a whole parameter has whole rows, and is cut to itself",
            "_cut: len(shape) == 1 -> len(shape) == -1": "the rows of a vector are its elements",
            "pack: codes.unsqueeze(1) -> codes.unsqueeze(-1)": "behind the only dimension either way",
            "pack: [1, 2, 4, 8, 16, 32, 64, 128] -> [1, 2, 4, 8, 16, 32, 64, -128]": "it is the same byte",
            "pack: dim=1 -> dim=-1": "the last of two dimensions is the second",
            "unpack: wire.unsqueeze(1) -> wire.unsqueeze(-1)": "behind the only dimension either way",
            "unpack: dim=1 -> dim=-1": "the last of two dimensions is the second",
        },
    ),
    trial(
        "qsgd",
        qsgd,
        {
            "QSGD.width: 2 * self.levels -> -2 * self.levels": "a sign takes no bit of a length",
            "QSGD.encode: dim=1 -> dim=-1": "the last of two dimensions is the second",
            "QSGD.encode: torch.where(scale > 0, scale, 1.0) -> torch.where(scale > 0, scale, -1.0)": "zeros "
            "are divided",
        },
    ),
    trial("terngrad", terngrad),
    trial("topk", topk),
    trial("dgc", dgc, {"DGC.compress: memory[1] -> memory[-1]": "the last of two is the second"}),
    trial(
        "sign",
        sign,
        {
            "ScaledSign.encode: (x.abs().sum() / message.elements).view(1) -> "
            "(x.abs().sum() / message.elements).view(-1)": "one number is a vector of one either way",
            "ScaledSign.decode: read(wire, 0, 1, dtype) * (2 * bits - 1).to(dtype) -> "
            "read(wire, 0, 1, dtype) / (2 * bits - 1).to(dtype)": "1 and -1 are their own inverses",
        },
    ),
    trial(
        "powersgd",
        powersgd,
        {
            "PowerSGD.rebuilt: m.high - m.low -> m.high + m.low": "only a square is padded, from 0",
            "_matrix: m.high - m.low -> m.high + m.low": "only a square is padded, from 0",
            "_joined: :0 -> :1": "nobody reads a factor where there is no matrix",
            "orthonormal: q.shape[1] -> q.shape[-1]": "the last of two dimensions is the second",
        },
    ),
    trial("single", single),
    trial(
        "pushing",
        pushing,
        {"Pushing.__init__: :0 -> :1": "its type alone is looked at"},
    ),
    trial("gossiping", gossiping),
    trial(
        "compressing",
        compressing,
        {
            "Compressing.all_reduce: place[1] -> place[-1]": "the last of two is the second",
            "Compressing._encode.compressed: 1: -> -1:": "no codec agrees and keeps something",
        },
    ),
    trial("registry", registry),
)


def test_every_module_has_a_trial() -> None:
    modules = {entry.module for entry in CODECS.values()}
    assert modules <= {one.module for one in TRIALS}


@pytest.mark.parametrize(("trial", "mutant"), cases(TRIALS))
def test_a_mutant_is_caught(trial: Trial, mutant: Mutant) -> None:
    trial.kill(mutant)


@pytest.mark.parametrize("trial", TRIALS, ids=str)
def test_the_codec_itself_passes(trial: Trial) -> None:
    trial.hold()
