"""Reading schedules: regions, visits, shares, on a dump made here and on the compiler's own."""

import dataclasses
import json

import pytest

from llama_jax.kernels.block_sizes import VMEM
from llama_jax.tpu import kernel_cases
from llama_jax.tpu.bundles import parse
from llama_jax.tpu.chips import CHIPS
from llama_jax.tpu.kernel_cases import Case
from llama_jax.tpu.kernel_counts import blocks_seen, decode_traffic, macs, valid_bytes, visits
from llama_jax.tpu.kernel_report import kernel_report

CAPACITY = "    4     4     3     4     2     1     3     3     1     1     2"
IDLE = "0 0 0 0 0 0 0 0 0 0 1"
BUSY = "4 1 0 2 1 1 1 0 1 0 0"
SPILLING = "2 0 0 4 0 0 0 1 1 1 0"


# The rows of one product: sixteen, but eight from the unit's own register.
PRODUCTS = (
    "vmatmul.bf16.gmra.mxu0 %v1 ;; %3 = vmatmul.lmr.bf16.gmra.16.mxu0 "
    ";; %4 = vmatmul.bf16.vlgmr.msra.gmra.mxu1"
)


def bundle(address, mark="", depth=">", code="nop"):
    return f"{address:#6x} {mark}  : {depth} {{ {code} }}"


def empty(address):
    return f"{address:#6x}   :  {{}}"


@pytest.fixture
def dump(tmp_path):
    """Four scalar bundles; in the grid's loop six, a loop of forty, a branch, twenty, five."""
    rows = [IDLE] * 10 + [BUSY] * 40 + [IDLE] * 5 + [SPILLING] * 20 + [IDLE] * 5
    lines = [bundle(a, depth="") for a in range(4)]
    # What follows a mark may be empty, and then shows no depth.
    lines += [bundle(4, "LB")] + [empty(a) for a in range(5, 10)]
    lines += [bundle(10, "LB", ">>")] + [bundle(a, depth=">>") for a in range(11, 50)]
    lines += [bundle(50, code="%9 = sbr.rel (!%p1) target = $region2")]
    lines += [empty(a) for a in range(51, 55)] + [bundle(a, code=PRODUCTS) for a in (55, 56)]
    lines += [bundle(a) for a in range(57, 75)] + ["  0x4b PF : {}"]
    lines += [bundle(a) for a in range(76, 80)]
    usage = "== CAPACTIY:\nMATMUL, ...\n" + CAPACITY + "\n== UTILIZATION:\n" + "\n".join(rows)
    stem = f"{tmp_path}/17-kernel.1-0"
    for number, suffix, text in (
        (1, "final_hlo-static-per-bundle-utilization.txt", usage),
        (2, "schedule-analysis_final_bundles.txt", "not read"),
        (3, "final_bundles.txt", "\n".join(lines)),
    ):
        with open(f"{stem}{number}-{suffix}", "w") as file:
            file.write(text)
    report = {"hlo_breakdowns": {"kernel.1": {"total_size": 4096}}}
    (tmp_path / "17-TLP-05-vmem_report.html").write_text(f"const DATA ={json.dumps(report)}; end")
    return tmp_path


def test_regions_and_visits(dump):
    (schedule,) = parse(dump, 2)
    assert (schedule.name, schedule.vmem_bytes, schedule.bundles) == ("kernel.1", 4096, 80)
    vector = [r for r in schedule.regions if r.is_vector]
    assert [(r.start, r.bundles) for r in vector] == [(10, 45), (55, 20)]
    assert (schedule.total("spill"), schedule.total("fill")) == (20, 20)
    assert [r.depth for r in schedule.regions] == [0, 1, 2, 1, 1]
    # Four scalar bundles once and eleven in each of two steps, the loop three times, the branch
    # once. Its busier matrix unit is given 2 x 24 rows, two a cycle.
    assert [r.matmul_cycles for r in vector] == [0, 24]
    assert schedule.cycles([3, 1], [2]) == 4 + 2 * 11 + 3 * 45 + 24
    assert schedule.busy("matmul", [3, 1], [2]) == (3 * 160 + 40) / (4 * (4 + 22 + 3 * 45 + 20))
    assert schedule.share("matmul") == 200 / (4 * 80)


def test_a_kernel_of_another_shape_is_refused(dump):
    (schedule,) = parse(dump, 2)
    with pytest.raises(ValueError, match=r"2 vector regions, not visits=\[1\].*\(10, 45\)"):
        schedule.cycles([1], [1])


def test_clocks_follow_from_the_published_peaks():
    """GHz; 0.70 and 0.94 for v2 and v3 in Norrie et al. 2021."""
    clocks = {name: round(chip.clock / 1e9, 2) for name, chip in CHIPS.items()}
    assert clocks == {
        "v2": 0.69, "v3": 0.94, "v4": 1.05, "v5e": 1.5, "v5p": 1.75, "v6e": 1.75, "tpu7x": 2.2,
    }  # fmt: skip


def test_counts_of_causal_blocks():
    """T = 4096 drawn as 4 x 4 blocks: six below the diagonal, four on it."""
    assert blocks_seen(1024, 1024) == (6, 4)
    assert blocks_seen(1024, 2048) == (2, 4)
    case = Case("ours", "forward", "7B", 1024, 1024, 256)
    # Scored tiles: one start a head, and as many accumulated ones as there are blocks.
    ((_, counts, loops),) = visits(case)
    assert loops == (32, 32 * 4)
    assert counts == [32, 0, 32 * 3, 32 * 3, 32 * 3, 32]
    # In two spans, the second starts in a whole tile.
    ((_, counts, loops),) = visits(case, spans=2)
    assert loops == (64, 32 * 4)
    assert counts == [32, 32, 32 * 3, 32 * 3, 32 * 2, 64]
    assert macs(Case("ours", "forward", "70B", 1024, 1024, 256)) == 64 * 2 * 128 * 4096 * 4097 // 2


def test_unknown_topology():
    with pytest.raises(ValueError, match="topology 'v3' must be one of v4, v5e, v5p, v6e, tpu7x"):
        kernel_report("v3")


def test_counts_of_packed_documents():
    """Eight blocks of 512 hold two documents each: eight tiles a head, and no loop is entered."""
    ours = Case("ours", "forward", "7B", 512, 512, 256, masks="packed")
    ((_, forward, loops),) = visits(ours)
    assert (sum(forward[:2]) + sum(forward[6:8]), loops) == (32 * 8, (32, 32 * 8))
    back = dataclasses.replace(ours, direction="backward")
    ((_, backward, loops),) = visits(dataclasses.replace(back, model="70B"), spans=2)
    assert (backward, loops) == ([8, 64 * 2, 0, 0, 0, 64 * 8, 8], (64 * 2, 64 * 8))
    # One query head a key head, in one span: resets and loads are one region.
    ((_, backward, _),) = visits(back)
    assert backward == [32, 0, 0, 0, 32 * 8, 32]


@pytest.mark.parametrize(
    ("model", "cache"), [("7B", "bfloat16"), ("70B", "bfloat16"), ("70B", "int8")]
)
def test_decoding_moves_the_valid_cache_and_little_more(model, cache):
    """Counted from the grid and the index maps."""
    case = kernel_cases.decode_case(model, cache)
    moved, other = decode_traffic(case)
    assert valid_bytes(case) < moved <= 1.05 * valid_bytes(case)
    assert other < 0.02 * moved
    # Exactly the blocks that the kernel's bodies take, whole and partly valid.
    ((_, (whole, partly, rows), _),) = visits(case)
    # At most eight key heads a step.
    assert rows == len(kernel_cases.LENGTHS) * kernel_cases.MODELS[model][1] // 8
    numbers = (whole + partly) * case.block_kv * 8 * 2
    assert moved == numbers * (128 + 4 if cache == "int8" else 2 * 128)


@pytest.mark.slow
@pytest.mark.parametrize("generation", VMEM)
def test_ours_is_ahead_of_splash(generation):
    """Compiled here and now: fewer cycles in both directions and models, and packed far fewer."""
    pytest.importorskip("libtpu", reason="libtpu is only made for x86-64 Linux")
    cases = [
        case
        for case in kernel_cases.best_cases(generation)
        if case.kernel == "ours" or (case.kernel == "splash" and case.masks == "causal")
    ]
    rows, failures = kernel_report(generation, cases=cases)
    assert not failures
    found = {(r["kernel"], r["masks"], r["direction"], r["model"]): r for r in rows}
    for model in kernel_cases.MODELS:
        for direction in ("forward", "backward"):
            ours, splash = (found[k, "causal", direction, model] for k in ("ours", "splash"))
            assert ours["cycles"] < splash["cycles"]
            packed = found["ours", "packed", direction, model]
            assert packed["over_visited"] < 1.3
            assert packed["cycles"] < 0.3 * splash["cycles"]
        share = {"v5e": 0.85, "v5p": 0.85, "v6e": 0.73, "tpu7x": 0.73}.get(generation, 0.0)
        assert found["ours", "causal", "forward", model]["matmul_text"] >= share
