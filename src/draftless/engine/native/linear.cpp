// x @ weight.T + bias for few rows, on weights that lie in the order in which they are read.
//
// The product is torch's own brgemm (AMX tiles, or AVX-512 where a CPU has none). What this saves is the
// set-up of a oneDNN primitive in every call, which takes longer than the product itself on small models
// (docs/adr/0007).

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/native/CPUBlas.h>
#include <ATen/ops/empty.h>
#include <c10/util/bit_cast.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <vector>

// Inductor turns this off for code of its own, which says itself what to vectorise.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("tree-loop-vectorize")
#endif

namespace {

using T = at::BFloat16;

constexpr int64_t kOutputs = 64;  // per block of the weight
constexpr int64_t kRows = 32;     // at once, so that the sums stay in the first cache

struct Product {
  const T* x;          // [rows, in]
  const float* scale;  // [width], or null: what the sums are multiplied with
  const T* bias;       // [width], or null
  T* out;              // [rows, width]
  int64_t rows, in, width;

  void block(const T* weight, int64_t first) const {  // weight [in / 2, kOutputs, 2]
    alignas(64) float sums[kRows * kOutputs];
    const int64_t count = std::min(kOutputs, width - first);
    for (int64_t row = 0; row < rows; row += kRows) {
      const int64_t num_rows = std::min(kRows, rows - row);
      at::native::cpublas::brgemm(num_rows, kOutputs, in, in, kOutputs, kOutputs, false, x + row * in, weight,
                                  sums, true);
      for (int64_t i = 0; i < num_rows; ++i) {
        store(sums + i * kOutputs, out + (row + i) * width + first, first, count);
      }
    }
  }

  void store(float* sums, T* to, int64_t first, int64_t count) const {
    if (scale != nullptr) {
      for (int64_t j = 0; j < count; ++j) sums[j] *= scale[first + j];
    }
    if (bias != nullptr) {
      for (int64_t j = 0; j < count; ++j) sums[j] += static_cast<float>(bias[first + j]);
    }
    for (int64_t j = 0; j < count; ++j) to[j] = static_cast<T>(sums[j]);
  }
};

const T* as_product_type(const T* weight, std::vector<T>&, int64_t) { return weight; }

// An int8 is exact in a bfloat16, which is the upper half of a float: no rounding, so it vectorises.
const T* as_product_type(const int8_t* weight, std::vector<T>& room, int64_t size) {
  room.resize(size);
  auto* bits = reinterpret_cast<uint16_t*>(room.data());
  for (int64_t i = 0; i < size; ++i) {
    bits[i] = static_cast<uint16_t>(c10::bit_cast<uint32_t>(static_cast<float>(weight[i])) >> 16);
  }
  return room.data();
}

template <typename Weight>
void all_blocks(const Product& product, const at::Tensor& weight) {
  const Weight* data = weight.const_data_ptr<Weight>();
  const int64_t size = product.in * kOutputs;
  at::parallel_for(0, weight.size(0), 1, [&](int64_t begin, int64_t end) {
    std::vector<T> room;
    for (int64_t index = begin; index < end; ++index) {
      product.block(as_product_type(data + index * size, room, size), index * kOutputs);
    }
    at::native::cpublas::brgemm_release(true);
  });
}

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& scale,
                  const std::optional<at::Tensor>& bias, int64_t width) {
  const at::Tensor input = x.contiguous();
  auto sizes = input.sizes().vec();
  const int64_t in = sizes.back();
  sizes.back() = width;
  at::Tensor out = at::empty(sizes, input.options());
  const Product product{input.const_data_ptr<T>(),
                        scale.has_value() ? scale->const_data_ptr<float>() : nullptr,
                        bias.has_value() ? bias->const_data_ptr<T>() : nullptr,
                        out.data_ptr<T>(),
                        input.numel() / in,
                        in,
                        width};
  if (weight.scalar_type() == at::kChar) {
    all_blocks<int8_t>(product, weight);
  } else {
    all_blocks<T>(product, weight);
  }
  return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(draftless_cpu, library) {
  library.def("linear(Tensor x, Tensor weight, Tensor? scale, Tensor? bias, int width) -> Tensor");
}

TORCH_LIBRARY_IMPL(draftless_cpu, CPU, library) { library.impl("linear", &linear); }
