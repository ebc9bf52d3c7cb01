"""Counts of bundles in the compiler's listings."""

from pathlib import Path

import pytest

from scripts.bench import static_bundles

LISTING = """= control target key start
LB: loop body
= control target key end

     0   :  { %s1 = smov.u32 0 }
   0x1 LB: > { %s2 = sadd.s32 1, %s1 } /* Start region 7 */
   0x2   : > { %12 = sbr.rel (%p1) target = $region5 }
   0x3   : > { %v1 = vadd.f32 %v0, %v0 } /* Start region 4 */
   0x4 LB: >> { %v2 = vadd.f32 %v1, %v1 } /* Start region 6 :: Start region 8 */
   0x5   : >> { %15 = sbr.rel (!%p2) target = $region6 } /* End region 8 */
   0x6   : > { %v3 = vadd.f32 %v1, %v1 } /* End region 4 */
   0x7 PF: > { %v4 = vadd.f32 %v1, %v1 } /* Start/End empty region 5 */
   0x8   : > { %16 = sbr.rel (!%p3) target = $region7 } /* End region 7 */
   0x9   :  { %17 = sbr.rel (%p4) target = $region99 }
   0xa   :  { %18 = shalt.err (0) }
"""


def test_bundles_count_as_often_as_the_innermost_region_that_holds_them_is_entered(tmp_path: Path):
    (tmp_path / "17-kernel.1-72-final_bundles.txt").write_text(LISTING)
    (tmp_path / "17-kernel.1-71-schedule-analysis_final_bundles.txt").write_text("")
    (tmp_path / "17-other.1-72-final_bundles.txt").write_text("")
    program = static_bundles.read(tmp_path, "kernel")
    Region = static_bundles.Region
    assert program.bundles == 11
    assert program.regions == (Region("loop", 1, 9), Region("if", 3, 7), Region("loop", 4, 6))
    # Three bundles are outside and eight in the outer loop; four are behind the branch, two of these in the inner loop.
    assert program.issued([10, 5, 100]) == 3 * 1 + 4 * 10 + 2 * 5 + 2 * 100


def test_a_name_that_is_not_of_one_program_is_refused(tmp_path: Path):
    with pytest.raises(AssertionError, match="kernel"):
        static_bundles.read(tmp_path, "kernel")


def test_of_xlas_programs_the_grid_is_counted_as_the_hlo_bounds_it(tmp_path: Path):
    (tmp_path / "17-fusion.1-72-final_bundles.txt").write_text(LISTING)
    (tmp_path / "17-fusion.12-72-final_bundles.txt").write_text(LISTING)
    (tmp_path / "17-<late-initialization>-72-final_bundles.txt").write_text(LISTING)
    hlo = """
      %fusion.1 = f32[8] fusion(%p), backend_config={"window_config":{"iteration_bounds":["4","1","2"]}}
      %fusion.12 = f32[8] fusion(%p), backend_config={"flag_configs":[]}
    """
    # Three bundles are outside the loop and eight in it, each issued eight times; the other program has no grid.
    assert static_bundles.issued_by_xla(tmp_path, hlo) == (3 + 8 * 8) + 11
