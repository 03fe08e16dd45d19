// musicldm::attention on CUDA: checks of its arguments, the choice of a kernel, its launch and its registration.
//
// The operator itself, what it does on other devices and its gradient are defined in musicldm/kernels/dot_product.py. This file
// uses torch's stable ABI alone, so that one binary serves many versions of torch.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cmath>

#include "primitives.cuh"
// after primitives.cuh, whose functions it is made of
#include "attention_kernel.h"

namespace musicldm {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t BLOCKS_THAT_FILL = 2;  // on each multiprocessor: from then on, more queries for each warp
constexpr int64_t MOST = 65535;          // items, and heads, in a grid

template <class Format, int QUERY_TILES, bool ALIGNED, bool WINDOWED>
__global__ void __launch_bounds__(32 * WARPS, QUERY_TILES == 1 ? 4 : 3) attention_kernel(const Arguments arguments) {
  __shared__ __align__(128) char shared[STAGES * 2 * TILE_BYTES];
  attend<Format, QUERY_TILES, ALIGNED, WINDOWED>(arguments, blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, shared);
}

template <class Format, int QUERY_TILES, bool ALIGNED, bool WINDOWED>
void launch(const Arguments& a, int64_t batch, cudaStream_t stream) {
  constexpr int rows = 16 * QUERY_TILES * WARPS;
  const dim3 blocks((a.n_queries + rows - 1) / rows, a.heads, static_cast<unsigned>(batch));
  attention_kernel<Format, QUERY_TILES, ALIGNED, WINDOWED><<<blocks, 32 * WARPS, 0, stream>>>(a);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <class Format, bool WINDOWED>
void launch_for(const Arguments& a, int64_t batch, bool aligned, int64_t rows, cudaStream_t stream) {
  if (!aligned) return launch<Format, 1, false, WINDOWED>(a, batch, stream);
  if (rows == 128) return launch<Format, 2, true, WINDOWED>(a, batch, stream);
  return launch<Format, 1, true, WINDOWED>(a, batch, stream);
}

template <class Format>
void launch_for(const Arguments& a, int64_t batch, bool aligned, int64_t rows, cudaStream_t stream) {
  if (a.window < 0) return launch_for<Format, false>(a, batch, aligned, rows, stream);
  return launch_for<Format, true>(a, batch, aligned, rows, stream);
}

int64_t multiprocessors(int device) {
  int count = 0;
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

Strides strides_of(const Tensor& x) { return {x.stride(0), x.stride(1), x.stride(2)}; }

// Whether every row of every head starts on a 16-byte boundary, as cp.async needs.
bool is_aligned(const Tensor& x) {
  bool aligned = reinterpret_cast<uintptr_t>(x.data_ptr()) % 16 == 0;
  for (int axis = 0; axis < 3; ++axis) aligned = aligned && (x.size(axis) == 1 || x.stride(axis) % 8 == 0);
  return aligned;
}

void check(const Tensor& x, const char* name, const Tensor& q) {
  STD_TORCH_CHECK(x.is_cuda() && x.get_device_index() == q.get_device_index(), name,
                  " must be on the CUDA device of q");
  STD_TORCH_CHECK(x.dim() == 4 && x.size(3) == HEAD, name, " must be (B, N, H, ", HEAD, ")");
  STD_TORCH_CHECK(x.stride(3) == 1, name, " must have a contiguous last axis");
  STD_TORCH_CHECK(x.scalar_type() == q.scalar_type(), name, " must have the dtype of q");
  STD_TORCH_CHECK(x.size(0) == q.size(0) && x.size(2) == q.size(2), name, " must have the batch and heads of q");
  STD_TORCH_CHECK(x.size(1) > 0 && x.size(1) < (1LL << 30), name, " must have 1 to 2^30 tokens, it has ", x.size(1));
}

// softmax(q kᵀ / √d) v for q (B, N, H, 32), k and v (B, M, H, 32). `window` time positions of `mel` tokens to either
// side, -1 for all. `rows` queries for each block: 64, 128, or 0 to choose.
Tensor attention(Tensor q, Tensor k, Tensor v, int64_t window, int64_t mel, int64_t rows) {
  check(q, "q", q);
  check(k, "k", q);
  check(v, "v", q);
  const ScalarType dtype = q.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Half || dtype == ScalarType::BFloat16, "q must be float16 or bfloat16");
  STD_TORCH_CHECK(k.size(1) == v.size(1), "k and v must have equally many tokens");
  STD_TORCH_CHECK(q.size(0) <= MOST && q.size(2) <= MOST, "attention is for at most ", MOST, " items and heads, got ",
                  q.size(0), " and ", q.size(2), "; use a smaller batch");
  STD_TORCH_CHECK(window < 0 || (mel > 0 && q.size(1) == k.size(1) && q.size(1) % mel == 0),
                  "a window needs q and k of equally many tokens, mel to each time position");
  STD_TORCH_CHECK(rows == 0 || rows == 64 || rows == 128, "rows must be 0, 64 or 128, got ", rows);

  const int device = q.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  Tensor o = torch::stable::new_empty(q, {q.size(0), q.size(1), q.size(2), q.size(3)});
  if (q.size(0) == 0 || q.size(2) == 0) return o;

  Arguments a;
  a.q = static_cast<const uint16_t*>(q.const_data_ptr());
  a.k = static_cast<const uint16_t*>(k.const_data_ptr());
  a.v = static_cast<const uint16_t*>(v.const_data_ptr());
  a.o = static_cast<uint16_t*>(o.mutable_data_ptr());
  a.q_strides = strides_of(q);
  a.k_strides = strides_of(k);
  a.v_strides = strides_of(v);
  a.o_strides = strides_of(o);
  a.heads = static_cast<int>(q.size(2));
  a.n_queries = static_cast<int>(q.size(1));
  a.n_keys = static_cast<int>(k.size(1));
  a.window = window < 0 ? -1 : static_cast<int>(window < q.size(1) ? window : q.size(1));
  a.mel = window < 0 ? 1 : static_cast<int>(mel);
  a.scale = static_cast<float>(1.4426950408889634 / std::sqrt(static_cast<double>(HEAD)));

  const int64_t batch = q.size(0);
  if (rows == 0) {
    const int64_t blocks_of_128 = batch * a.heads * ((a.n_queries + 127) / 128);
    rows = blocks_of_128 >= BLOCKS_THAT_FILL * multiprocessors(device) && a.n_queries >= 128 ? 128 : 64;
  }
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  const bool aligned = is_aligned(q) && is_aligned(k) && is_aligned(v);
  if (dtype == ScalarType::Half) {
    launch_for<Float16>(a, batch, aligned, rows, static_cast<cudaStream_t>(stream));
  } else {
    launch_for<BFloat16>(a, batch, aligned, rows, static_cast<cudaStream_t>(stream));
  }
  return o;
}

}  // namespace
}  // namespace musicldm

STABLE_TORCH_LIBRARY_IMPL(musicldm, CUDA, m) { m.impl("attention", TORCH_BOX(&musicldm::attention)); }
