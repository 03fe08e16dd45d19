// The instructions that the attention kernel is made of, for compute capability 8.0 and above.
//
// PTX ISA, "Matrix multiply-accumulate operation using mma instruction", "ldmatrix", "cp.async".
#pragma once

#include <cstdint>

#define FUNCTION __device__ __forceinline__

namespace musicldm {

struct Float16 {};
struct BFloat16 {};

FUNCTION uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

FUNCTION uint16_t load_element(const uint16_t* from) { return __ldg(from); }

// Two neighbouring elements; ALIGNED says that they lie on a 4-byte boundary.
template <bool ALIGNED>
FUNCTION uint32_t load_pair(const uint16_t* from) {
  if constexpr (ALIGNED) return __ldg(reinterpret_cast<const uint32_t*>(from));
  return __ldg(from) | static_cast<uint32_t>(__ldg(from + 1)) << 16;
}

FUNCTION void store_pair(uint16_t* to, uint32_t pair) { *reinterpret_cast<uint32_t*>(to) = pair; }

// Start to copy 16 bytes to shared memory, zeros if not `inside`. Groups of copies complete in the order of commits.
FUNCTION void copy_async(void* to, const void* from, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(to)), "l"(from),
               "r"(inside ? 16 : 0)
               : "memory");
}

FUNCTION void commit_copies() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }

// Wait until at most PENDING groups of this thread's copies are not there yet.
template <int PENDING>
FUNCTION void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(PENDING) : "memory");
}

FUNCTION void block_barrier() { __syncthreads(); }

// Four matrices of 8 rows of 16 bytes; lane 8 i + j gives the place of row j of matrix i.
FUNCTION void load_matrices(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
}

FUNCTION void load_matrices_transposed(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
}

// sum (16, 8) += left (16, 16) right (16, 8), summed in float32.
template <class Format>
FUNCTION void multiply_add(float (&sum)[4], const uint32_t (&left)[4], uint32_t right0, uint32_t right1);

template <>
FUNCTION void multiply_add<Float16>(float (&sum)[4], const uint32_t (&left)[4], uint32_t right0, uint32_t right1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right0), "r"(right1));
}

template <>
FUNCTION void multiply_add<BFloat16>(float (&sum)[4], const uint32_t (&left)[4], uint32_t right0, uint32_t right1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right0), "r"(right1));
}

// Two numbers in 16 bits each, rounded to nearest; the first in the lower half.
template <class Format>
FUNCTION uint32_t pack(float first, float second);

template <>
FUNCTION uint32_t pack<Float16>(float first, float second) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;\n" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
}

template <>
FUNCTION uint32_t pack<BFloat16>(float first, float second) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
}

FUNCTION float power_of_two(float exponent) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(power) : "f"(exponent));
  return power;
}

FUNCTION float larger(float a, float b) { return fmaxf(a, b); }

FUNCTION float from_lane_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }

}  // namespace musicldm
