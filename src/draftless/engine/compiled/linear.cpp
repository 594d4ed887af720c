// x @ weight.T + bias for few rows, on weights that lie in the order in which they are read.
//
// The product is torch's own brgemm (AMX tiles). What this saves is the set-up of a oneDNN primitive in
// every call, which takes longer than the product itself on small models (docs/adr/0007).

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/native/CPUBlas.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>

namespace {

using T = at::BFloat16;

constexpr int64_t kOutputs = 64;  // per block of the weight
constexpr int64_t kRows = 32;     // at once, so that the sums stay in the first cache

struct Product {
  const T* x;       // [rows, in]
  const T* weight;  // [blocks, in / 2, kOutputs, 2]
  const T* bias;    // [width] or null
  T* out;           // [rows, width]
  int64_t rows, in, width;

  void block(int64_t index) const {
    alignas(64) float sums[kRows * kOutputs];
    const int64_t first = index * kOutputs;
    const int64_t count = std::min(kOutputs, width - first);
    for (int64_t row = 0; row < rows; row += kRows) {
      const int64_t num_rows = std::min(kRows, rows - row);
      at::native::cpublas::brgemm(num_rows, kOutputs, in, in, kOutputs, kOutputs, false, x + row * in,
                                  weight + first * in, sums, true);
      for (int64_t i = 0; i < num_rows; ++i) {
        store(sums + i * kOutputs, out + (row + i) * width + first, first, count);
      }
    }
  }

  void store(const float* sums, T* to, int64_t first, int64_t count) const {
    if (bias == nullptr) {
      for (int64_t j = 0; j < count; ++j) to[j] = static_cast<T>(sums[j]);
    } else {
      for (int64_t j = 0; j < count; ++j) to[j] = static_cast<T>(sums[j] + static_cast<float>(bias[first + j]));
    }
  }
};

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                  int64_t width) {
  const at::Tensor input = x.contiguous();
  auto sizes = input.sizes().vec();
  const int64_t in = sizes.back();
  sizes.back() = width;
  at::Tensor out = at::empty(sizes, input.options());
  const Product product{input.const_data_ptr<T>(),
                        weight.const_data_ptr<T>(),
                        bias.has_value() ? bias->const_data_ptr<T>() : nullptr,
                        out.data_ptr<T>(),
                        input.numel() / in,
                        in,
                        width};
  at::parallel_for(0, weight.size(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) product.block(index);
    at::native::cpublas::brgemm_release(true);
  });
  return out;
}

}  // namespace

TORCH_LIBRARY(draftless_cpu, library) {
  library.def("linear(Tensor x, Tensor weight, Tensor? bias, int width) -> Tensor");
}

TORCH_LIBRARY_IMPL(draftless_cpu, CPU, library) { library.impl("linear", &linear); }
