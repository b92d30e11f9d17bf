"""The reader of compiled programs, on lines whose bytes and operations are counted by hand."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import hlo

PROGRAM = """
HloModule m

%product (p: bf16[2,8,8,4], q: bf16[3,3,4,16]) -> bf16[2,8,8,16] {
  %p = bf16[2,8,8,4]{3,2,1,0:T(8,128)(2,1)} parameter(0)
  %q = bf16[3,3,4,16]{3,2,1,0} parameter(1)
  ROOT %c = bf16[2,8,8,16]{3,2,1,0} convolution(%p, %q), window={size=3x3 pad=1_1x1_1}, \
dim_labels=b01f_01io->b01f, metadata={op_name="jit(step)/net/conv"}
}

%part (x: u8[100,4,4,3], i: s32[]) -> u8[1,4,4,3] {
  %x = u8[100,4,4,3]{3,2,1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %s = u8[1,4,4,3]{3,2,1,0} dynamic-slice(%x, %i, %i, %i, %i), \
metadata={op_name="jit(step)/preprocess/slice"}
}

%body (t: (f32[256], f32[256])) -> (f32[256], f32[256]) {
  %t = (f32[256]{0}, f32[256]{0}) parameter(0)
  %a = f32[256]{0} get-tuple-element(%t), index=0
  %r = f32[256]{0} all-reduce(%a), replica_groups={{0,1}}, to_apply=%sum
  ROOT %u = (f32[256]{0}, f32[256]{0}) tuple(%r, %a)
}

ENTRY %main (w: bf16[3,3,4,16], x: bf16[2,8,8,4], d: u8[100,4,4,3], i: s32[]) -> f32[256] {
  %w = bf16[3,3,4,16]{3,2,1,0} parameter(0)
  %x.1 = bf16[2,8,8,4]{3,2,1,0:T(8,128)(2,1)} parameter(1)
  %d = u8[100,4,4,3]{3,2,1,0} parameter(2)
  %i.1 = s32[] parameter(3)
  %f = bf16[2,8,8,16]{3,2,1,0:S(1)} fusion(%x.1, %w), kind=kOutput, calls=%product, \
metadata={op_name="jit(step)/net/conv"}
  %g = u8[1,4,4,3]{3,2,1,0} fusion(%d, %i.1), kind=kLoop, calls=%part
  %t.1 = (f32[256]{0}, f32[256]{0}) tuple(%i.1, %i.1)
  ROOT %l = (f32[256]{0}, f32[256]{0}) while(%t.1), condition=%less, body=%body, \
backend_config={"known_trip_count":{"n":"5"}}
}
"""


def test_kernels_of_a_program_counted_by_hand():
    convolution, part, exchange = hlo.kernels(PROGRAM)
    assert (convolution.kind, part.kind, exchange.kind) == (
        *("convolution", "elementwise", "all-reduce"),
    )
    assert convolution.flops == 2 * (2 * 8 * 8 * 16) * (3 * 3 * 4)
    assert (convolution.dtype, convolution.layout) == ("bf16", "b01f_01io->b01f")
    # Images of 4 channels are padded to 128; the result stays in the core's memory.
    assert convolution.bytes == 2 * (2 * 8 * 8 * 128) + 2 * (3 * 3 * 4 * 16)
    assert part.bytes == 2 * 48 + 4  # the slice is read and written, the other images are not
    assert part.mostly("preprocess")
    assert not convolution.mostly("preprocess")
    assert (exchange.runs, exchange.bytes, exchange.float32) == (5, 2048, 2048)


def test_kinds_are_summed_by_runs():
    totals = hlo.by_kind(hlo.kernels(PROGRAM))
    assert next(iter(totals)) == "convolution"
    assert totals["all-reduce"] == {"kernels": 1, "runs": 5, "bytes": 5 * 2048}
    assert [each.name for each in hlo.collectives(hlo.kernels(PROGRAM))] == ["r"]


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_and_its_gradients_have_as_many_operations(stride):
    """Of a program of this machine; one output element is a product of 5 · 5 · 8 elements."""

    def conv(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", dimension_numbers=numbers
        )
        return jnp.square(y).sum()

    x, kernel = jnp.ones((2, 16, 16, 8)), jnp.ones((5, 5, 8, 12))
    compiled = jax.jit(jax.grad(conv, argnums=(0, 1))).lower(x, kernel).compile()
    found = [each.flops for each in hlo.kernels(compiled.as_text()) if each.flops]
    assert found == [2 * (2 * (16 // stride) ** 2 * 12) * (5 * 5 * 8)] * 3
