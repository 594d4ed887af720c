// The largest logits per row, as they are and under keyed noise.

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <pybind11/numpy.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "likeliest.h"
#include "noisy.h"

namespace {

template <typename T>
using Array = pybind11::array_t<T>;

template <typename DataOf>
using NumberOf = std::decay_t<decltype(*std::declval<DataOf>()(0))>;

// Calls `use` with where the rows of `logits` [N, V] begin.
template <typename Use>
void with_rows(const at::Tensor& logits, const Use& use) {
  TORCH_CHECK(logits.device().is_cpu() && logits.dim() == 2 && logits.stride(1) == 1, "logits [N, V] of a CPU");
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, logits.scalar_type(), "draws", [&] {
    const scalar_t* data = logits.const_data_ptr<scalar_t>();
    const int64_t num_rows = logits.size(0), stride = logits.stride(0);
    use([=](int64_t row) {
      if (row < 0 || row >= num_rows) throw pybind11::index_error("no row " + std::to_string(row));
      return data + row * stride;
    });
  });
}

void check_count(const at::Tensor& logits, int64_t count) {
  TORCH_CHECK(logits.dim() == 2 && count > 0 && count <= logits.size(1), "no ", count, " likeliest");
}

// The largest of one row, the lowest id on ties.
int64_t largest(const at::Tensor& logits, int64_t row) {
  int64_t best = 0;
  with_rows(logits, [&](const auto& data_of) {
    Finder<NumberOf<decltype(data_of)>> find;
    float value;
    find(data_of(row), logits.size(1), 1, &best, &value);
  });
  return best;
}

std::tuple<Array<int64_t>, Array<float>> likeliest(const at::Tensor& logits, int64_t count) {
  check_count(logits, count);
  Array<int64_t> ids({logits.size(0), count});
  Array<float> values({logits.size(0), count});
  with_rows(logits, [&](const auto& data_of) {
    Finder<NumberOf<decltype(data_of)>> find;
    for (int64_t row = 0; row < logits.size(0); ++row) {
      find(data_of(row), logits.size(1), count, ids.mutable_data(row), values.mutable_data(row));
    }
  });
  return {ids, values};
}

// Position by position the noise is that of `noise`, which seed and sample give.
std::tuple<Array<int64_t>, Array<double>> likeliest_under_noise(const at::Tensor& logits, const std::vector<int64_t>& rows,
                                                                uint64_t noise, const std::vector<int64_t>& positions,
                                                                double temperature, int64_t count) {
  check_count(logits, count);
  TORCH_CHECK(rows.size() == positions.size());
  const int64_t num_rows = static_cast<int64_t>(rows.size());
  Array<int64_t> ids({num_rows, count});
  Array<double> scores({num_rows, count});
  with_rows(logits, [&](const auto& data_of) {
    for (int64_t place = 0; place < num_rows; ++place) {
      Best best(count);
      find_under_noise(data_of(rows[place]), logits.size(1), temperature, stream_of(noise, positions[place]), best);
      for (int64_t rank = 0; rank < count; ++rank) {
        std::tie(scores.mutable_at(place, rank), ids.mutable_at(place, rank)) = best.found[rank];
      }
    }
  });
  return {ids, scores};
}

// The single largest of one row: what the target says.
int64_t draw_under_noise(const at::Tensor& logits, int64_t row, uint64_t noise, int64_t position, double temperature) {
  Best best(1);
  with_rows(logits, [&](const auto& data_of) {
    find_under_noise(data_of(row), logits.size(1), temperature, stream_of(noise, position), best);
  });
  return best.found[0].second;
}

// The same among a handful of tokens.
std::tuple<std::vector<int64_t>, std::vector<double>> ranked_under_noise(const std::vector<int64_t>& ids,
                                                                         const std::vector<double>& logits,
                                                                         uint64_t noise, int64_t position,
                                                                         double temperature, int64_t count) {
  TORCH_CHECK(ids.size() == logits.size() && count > 0);
  const uint64_t stream = stream_of(noise, position);
  const size_t num_ranked = std::min<size_t>(count, ids.size());
  std::vector<std::pair<double, int64_t>> order;
  for (size_t i = 0; i < ids.size(); ++i) {
    order.emplace_back(-(logits[i] / temperature + noise_of(stream, ids[i])), ids[i]);
  }
  std::partial_sort(order.begin(), order.begin() + num_ranked, order.end());
  std::vector<int64_t> best;
  std::vector<double> scores;
  for (size_t i = 0; i < num_ranked; ++i) {
    best.push_back(order[i].second);
    scores.push_back(-order[i].first);
  }
  return {best, scores};
}

}  // namespace

PYBIND11_MODULE(draws, module) {
  module.def("largest", &largest);
  module.def("likeliest", &likeliest);
  module.def("likeliest_under_noise", &likeliest_under_noise);
  module.def("draw_under_noise", &draw_under_noise);
  module.def("ranked_under_noise", &ranked_under_noise);
}
