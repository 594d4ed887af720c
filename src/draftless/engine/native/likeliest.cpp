// The largest of logits * scale + noise per row.
//
// A row is folded onto kColumns columns, keeping maxima. The `count` largest scores lie in columns whose
// maxima are among the `count` largest, so all other columns are read only once, by vector instructions.

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

// Inductor turns this off for code of its own, which says itself what to vectorise.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("tree-loop-vectorize")
#endif

namespace {

constexpr int64_t kColumns = 256;
constexpr float kLowest = -std::numeric_limits<float>::infinity();

template <typename T>
struct Row {
  const T* logits;
  const float* noise;  // or null
  float scale;
  int64_t width;

  float score(int64_t id) const {
    const float scaled = static_cast<float>(logits[id]) * scale;
    return noise == nullptr ? scaled : scaled + noise[id];
  }

  void fold(float* maxima) const {
    std::fill(maxima, maxima + kColumns, kLowest);
    for (int64_t first = 0; first < width; first += kColumns) {
      const int64_t size = std::min(kColumns, width - first);
      float scores[kColumns];
      for (int64_t i = 0; i < size; ++i) scores[i] = static_cast<float>(logits[first + i]) * scale;
      if (noise != nullptr) {
        for (int64_t i = 0; i < size; ++i) scores[i] += noise[first + i];
      }
      for (int64_t i = 0; i < size; ++i) maxima[i] = scores[i] > maxima[i] ? scores[i] : maxima[i];
    }
  }

  // The best scores, the largest first; of equals the lowest ids.
  void find(int64_t count, int64_t* ids, float* scores, std::vector<std::pair<float, int64_t>>& found) const {
    float maxima[kColumns], order[kColumns];
    fold(maxima);
    float least = kLowest;
    if (count < kColumns) {
      std::copy(maxima, maxima + kColumns, order);
      std::nth_element(order, order + count - 1, order + kColumns, std::greater<float>());
      least = order[count - 1];
    }
    found.clear();
    for (int64_t column = 0; column < std::min(kColumns, width); ++column) {
      if (maxima[column] < least) continue;
      for (int64_t id = column; id < width; id += kColumns) {
        if (const float one = score(id); one >= least) found.emplace_back(-one, id);
      }
    }
    found.resize(std::max<size_t>(found.size(), count), {-kLowest, 0});  // short only where scores are NaN
    std::partial_sort(found.begin(), found.begin() + count, found.end());
    for (int64_t i = 0; i < count; ++i) {
      scores[i] = -found[i].first;
      ids[i] = found[i].second;
    }
  }
};

std::tuple<at::Tensor, at::Tensor> likeliest(const at::Tensor& logits, const std::optional<at::Tensor>& noise,
                                             double scale, int64_t count) {
  TORCH_CHECK(logits.dim() == 2 && logits.stride(1) == 1 && count > 0 &&
              count <= logits.size(1));
  TORCH_CHECK(!noise.has_value() || (noise->is_contiguous() && noise->sizes() == logits.sizes() &&
                                     noise->scalar_type() == at::kFloat));
  const int64_t rows = logits.size(0), width = logits.size(1), stride = logits.stride(0);
  at::Tensor ids = at::empty({rows, count}, logits.options().dtype(at::kLong));
  at::Tensor scores = at::empty({rows, count}, logits.options().dtype(at::kFloat));
  const float* added = noise.has_value() ? noise->const_data_ptr<float>() : nullptr;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, logits.scalar_type(), "likeliest", [&] {
    const scalar_t* data = logits.const_data_ptr<scalar_t>();
    std::vector<std::pair<float, int64_t>> found;
    for (int64_t row = 0; row < rows; ++row) {
      const Row<scalar_t> one{data + row * stride, added == nullptr ? nullptr : added + row * width,
                              static_cast<float>(scale), width};
      one.find(count, ids.data_ptr<int64_t>() + row * count, scores.data_ptr<float>() + row * count, found);
    }
  });
  return {ids, scores};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(draftless_cpu, library) {
  library.def("likeliest(Tensor logits, Tensor? noise, float scale, int count) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(draftless_cpu, CPU, library) { library.impl("likeliest", &likeliest); }
