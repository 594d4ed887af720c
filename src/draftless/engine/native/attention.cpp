// Attention of few queries over what is cached, in bfloat16: the query heads of a KV head side by side.
//
// Keys are taken as they lie in the cache and multiplied with all queries of their head at once, so they are
// read once; the softmax runs along 16 queries per vector. For a handful of queries a library's general kernel
// spends most of its time on what it does for many.
//
// Sums go from key to key, and a hidden key adds an exact zero. So a node of a tree gets the bits that plain
// decoding gets, whatever stands beside it and wherever in the cache its ancestors lie.

#ifndef __AVX512BF16__
#error "attention.cpp needs AVX512-BF16"
#endif

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <immintrin.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

namespace {

using T = at::BFloat16;

constexpr int64_t kLanes = 16;
constexpr int kSums = 8;            // vectors of sums at once: enough to hide what one takes
constexpr int64_t kQueries = 64;    // of a head at once, so that their scores stay in the cache
constexpr int64_t kWork = 1 << 13;  // scores that are worth a thread
constexpr double kLog2E = 1.4426950408889634;

// 2^x to a few units in the last place; 0 from -120 down.
inline __m512 exp2(__m512 x) {
  const __mmask16 counts = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-120.0f), _CMP_GT_OQ);
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 rest = _mm512_sub_ps(x, whole);  // within -1/2 and 1/2: the series of e^(rest ln 2)
  __m512 value = _mm512_set1_ps(1.5403530e-4f);
  for (const float factor : {1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f}) {
    value = _mm512_fmadd_ps(value, rest, _mm512_set1_ps(factor));
  }
  return _mm512_maskz_scalef_ps(counts, value, whole);
}

inline int pair_at(const T* data) {
  int pair;
  std::memcpy(&pair, data, sizeof pair);
  return pair;
}

inline __m512bh broadcast(int pair) { return (__m512bh)_mm512_set1_epi32(pair); }

inline __m512 widened(const T* data) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(data));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

inline void store(T* data, __m512 values) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(data), (__m256i)_mm512_cvtneps_pbh(values));
}

inline __m512bh load(const T* data) { return (__m512bh)_mm512_loadu_si512(data); }

// One KV head of one row: its queries, padded to whole vectors, and the room to work in.
struct Head {
  int64_t num_queries, head_dim, lanes;
  float *scores, *total;  // [C, lanes]; [lanes]
  T* queries;             // [D / 2, lanes, 2]

  Head(int64_t num_queries_, int64_t head_dim_, int64_t context)
      : num_queries(num_queries_), head_dim(head_dim_), lanes((num_queries_ + kLanes - 1) / kLanes * kLanes) {
    static thread_local std::vector<float> room;  // kept: to fill it with zeros takes as long as to use it
    const size_t size = (context + 1 + head_dim / 2) * lanes;
    if (room.size() < size) room.resize(size);
    scores = room.data();
    total = scores + context * lanes;
    queries = reinterpret_cast<T*>(total + lanes);
  }

  void begin() { std::memset(queries, 0, head_dim * lanes * sizeof(T)); }

  void set_query(int64_t place, const T* query) {
    for (int64_t at = 0; at < head_dim; at += 2) {
      std::memcpy(queries + (at / 2 * lanes + place) * 2, query + at, 2 * sizeof(T));
    }
  }

  // Scores of keys [count, D], times `scale`.
  void score(const T* keys, int64_t count, float scale) {
    for (int64_t lane = 0; lane < lanes; lane += 2 * kLanes) {
      if (lane + kLanes < lanes) {
        score_vectors<2>(keys, count, scale, lane);
      } else {
        score_vectors<1>(keys, count, scale, lane);
      }
    }
  }

  template <int kVectors>
  void score_vectors(const T* keys, int64_t count, float scale, int64_t lane) {
    constexpr int kKeys = kSums / kVectors;
    for (int64_t key = 0; key < count; key += kKeys) {
      const int64_t num_keys = std::min<int64_t>(kKeys, count - key);
      const T* rows[kKeys];
      for (int64_t i = 0; i < kKeys; ++i) rows[i] = keys + (key + std::min(i, num_keys - 1)) * head_dim;
      __m512 sum[kKeys][kVectors];
      for (auto& of_key : sum) {
        for (auto& one : of_key) one = _mm512_setzero_ps();
      }
      for (int64_t at = 0; at < head_dim; at += 2) {
        __m512bh both[kVectors];
        for (int v = 0; v < kVectors; ++v) both[v] = load(queries + (at / 2 * lanes + lane + v * kLanes) * 2);
        for (int i = 0; i < kKeys; ++i) {
          const __m512bh of_key = broadcast(pair_at(rows[i] + at));
          for (int v = 0; v < kVectors; ++v) sum[i][v] = _mm512_dpbf16_ps(sum[i][v], both[v], of_key);
        }
      }
      for (int64_t i = 0; i < num_keys; ++i) {
        for (int v = 0; v < kVectors; ++v) {
          _mm512_storeu_ps(scores + (key + i) * lanes + lane + v * kLanes,
                           _mm512_mul_ps(sum[i][v], _mm512_set1_ps(scale)));
        }
      }
    }
  }

  void hide(int64_t query, int64_t key) { scores[key * lanes + query] = -std::numeric_limits<float>::infinity(); }

  // Scores to weights.
  void weigh(int64_t count) {
    for (int64_t lane = 0; lane < lanes; lane += kLanes) {
      float* first = scores + lane;
      __m512 most = _mm512_loadu_ps(first), sum = _mm512_setzero_ps();
      for (int64_t key = 1; key < count; ++key) most = _mm512_max_ps(most, _mm512_loadu_ps(first + key * lanes));
      for (int64_t key = 0; key < count; ++key) {
        const __m512 weight = exp2(_mm512_sub_ps(_mm512_loadu_ps(first + key * lanes), most));
        sum = _mm512_add_ps(sum, weight);
        _mm512_storeu_ps(first + key * lanes, weight);
      }
      _mm512_storeu_ps(total + lane, sum);
    }
  }

  // The weighted values of some queries: `to[i]` is where the i-th one's go.
  template <int kCount>
  void add_values(const T* values, int64_t count, int64_t query, T* const* to) const {
    for (int64_t at = 0; at < head_dim; at += 2 * kLanes) {
      __m512 low[kCount], high[kCount];
      for (int i = 0; i < kCount; ++i) low[i] = high[i] = _mm512_setzero_ps();
      for (int64_t key = 0; key < count; ++key) {
        const __m512 first = widened(values + key * head_dim + at);
        const __m512 second = widened(values + key * head_dim + at + kLanes);
        for (int i = 0; i < kCount; ++i) {
          const __m512 weight = _mm512_set1_ps(scores[key * lanes + query + i]);
          low[i] = _mm512_fmadd_ps(weight, first, low[i]);
          high[i] = _mm512_fmadd_ps(weight, second, high[i]);
        }
      }
      for (int i = 0; i < kCount && query + i < num_queries; ++i) {
        const __m512 share = _mm512_set1_ps(1.0f / total[query + i]);
        store(to[i] + at, _mm512_mul_ps(low[i], share));
        store(to[i] + at + kLanes, _mm512_mul_ps(high[i], share));
      }
    }
  }
};

using Ids = std::vector<int64_t>;

using Weak = c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>;

// What the passes of a thread attend to, until the next `begin_pass`.
struct Pass {
  // A row: a tree behind `start` cached tokens, padded.
  struct Row {
    int64_t start;
    Ids depths;
    std::vector<uint8_t> sees;  // [W, W]: whether a node sees another
  };

  Weak data;          // the cache, [Y, 2, B, Hkv, C, D]
  int64_t first_row;  // of the pass, in the cache
  int64_t width;
  std::vector<Row> rows;
  Ids windows;  // per type of layer; 0: none

  int64_t context(int64_t row) const { return rows[row].start + width; }
};

thread_local std::optional<Pass> current;

Pass::Row row_of(int64_t start, const Ids& parents, int64_t width) {
  Pass::Row row{start, Ids(width, 0), std::vector<uint8_t>(width * width, 0)};
  for (int64_t node = 0; node < width; ++node) {
    uint8_t* sees = row.sees.data() + node * width;
    if (node < static_cast<int64_t>(parents.size()) && parents[node] >= 0) {  // else a root, or padding
      TORCH_CHECK(parents[node] < node, "node ", node, " has parent ", parents[node]);
      row.depths[node] = row.depths[parents[node]] + 1;
      std::memcpy(sees, row.sees.data() + parents[node] * width, node);
    }
    sees[node] = 1;
  }
  return row;
}

// Tells the passes that follow in this thread what they attend to. Token ids and positions of all rows behind one
// another, [1, R * W] each; padding is token 0 at position 0.
std::pair<at::Tensor, at::Tensor> begin_pass(const at::Tensor& data, int64_t first_row, const Ids& starts,
                                             const std::vector<Ids>& token_ids, const std::vector<Ids>& parents,
                                             int64_t width, Ids windows) {
  TORCH_CHECK(data.dim() == 6 && data.is_contiguous() && starts.size() == token_ids.size() &&
              starts.size() == parents.size());
  Pass& pass = current.emplace(Pass{Weak(data.getIntrusivePtr()), first_row, width, {}, std::move(windows)});
  const int64_t num_rows = static_cast<int64_t>(starts.size());
  at::Tensor ids = at::zeros({1, num_rows * width}, at::kLong), positions = at::zeros_like(ids);
  for (int64_t row = 0; row < num_rows; ++row) {
    const int64_t num_nodes = static_cast<int64_t>(parents[row].size());
    TORCH_CHECK(num_nodes <= width && token_ids[row].size() == parents[row].size());
    pass.rows.push_back(row_of(starts[row], parents[row], width));
    std::copy(token_ids[row].begin(), token_ids[row].end(), ids.data_ptr<int64_t>() + row * width);
    for (int64_t node = 0; node < num_nodes; ++node) {
      positions.data_ptr<int64_t>()[row * width + node] = starts[row] + pass.rows[row].depths[node];
    }
  }
  return {ids, positions};
}

// Hides from a query, one of node `node`, what is no ancestor of it or too far away.
void hide(Head& head, int64_t query, const Pass::Row& row, int64_t node, int64_t width, int64_t window) {
  const uint8_t* sees = row.sees.data() + node * width;
  const int64_t first = window == 0 ? 0 : row.start + row.depths[node] - window + 1;  // position that is seen
  for (int64_t key = 0; key < std::min(first, row.start); ++key) head.hide(query, key);
  for (int64_t other = 0; other < width; ++other) {
    if (!sees[other] || row.start + row.depths[other] < first) head.hide(query, row.start + other);
  }
}

// Copies the new states [H, W, D] of one row behind what is cached.
void write(const at::Tensor& states, int64_t row, int64_t width, T* to, int64_t capacity) {
  const int64_t dim = states.size(3);
  for (int64_t head = 0; head < states.size(1); ++head) {
    for (int64_t node = 0; node < width; ++node) {
      const T* from = states.const_data_ptr<T>() + head * states.stride(1) + (row * width + node) * states.stride(2);
      std::memcpy(to + (head * capacity + node) * dim, from, dim * sizeof(T));
    }
  }
}

at::Tensor with_whole_vectors(const at::Tensor& states) {
  return states.stride(3) == 1 ? states : states.contiguous();
}

// [1, R * W, Hq, D] of queries [1, Hq, R * W, D] and the new keys and values [1, Hkv, R * W, D], which are cached.
// `place` holds the number of the layer and that of its type.
at::Tensor attention(const at::Tensor& query_, const at::Tensor& key_, const at::Tensor& value_, const at::Tensor& place,
                     double scaling) {
  const at::Tensor query = with_whole_vectors(query_), key = with_whole_vectors(key_),
                   value = with_whole_vectors(value_);
  TORCH_CHECK(current, "no pass was begun in this thread");
  const Pass& pass = *current;
  const at::Tensor data(pass.data.lock());
  TORCH_CHECK(data.defined(), "the cache of this pass is gone");
  const int64_t rows = pass.rows.size(), heads = query.size(1), width = pass.width, dim = query.size(3);
  const int64_t kv_heads = key.size(1), groups = heads / kv_heads, capacity = data.size(4);
  const int64_t layer = place.const_data_ptr<int64_t>()[0];
  const int64_t window = pass.windows.at(place.const_data_ptr<int64_t>()[1]);
  int64_t longest = 0;
  for (int64_t row = 0; row < rows; ++row) longest = std::max(longest, pass.context(row));
  TORCH_CHECK(dim % 32 == 0 && data.size(5) == dim && data.size(3) == kv_heads && longest <= capacity &&
              layer < data.size(0) && pass.first_row + rows <= data.size(2) &&
              query.size(2) == rows * width);
  at::Tensor out = at::empty({1, rows * width, heads, dim}, query.options());
  T* to = out.data_ptr<T>();
  const int64_t row_size = kv_heads * capacity * dim, to_values = data.size(2) * row_size;
  T* cached = data.data_ptr<T>() + (layer * 2 * data.size(2) + pass.first_row) * row_size;
  for (int64_t row = 0; row < rows; ++row) {
    T* behind = cached + row * row_size + pass.rows[row].start * dim;
    write(key, row, width, behind, capacity);
    write(value, row, width, behind + to_values, capacity);
  }
  const T* queries = query.const_data_ptr<T>();
  const int64_t num_queries = groups * width, parts = (num_queries + kQueries - 1) / kQueries;
  const int64_t at_least = (kWork * parts + num_queries * longest - 1) / (num_queries * longest);
  at::parallel_for(0, rows * kv_heads * parts, at_least, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      const int64_t row = index / parts / kv_heads, kv_head = index / parts % kv_heads, from = index % parts * kQueries;
      const int64_t context = pass.context(row);
      const T* keys = cached + index / parts * capacity * dim;
      const auto head_of = [&](int64_t one) { return kv_head * groups + (from + one) / width; };
      const auto node_of = [&](int64_t one) { return (from + one) % width; };
      const auto token_of = [&](int64_t one) { return row * width + node_of(one); };
      Head head(std::min(kQueries, num_queries - from), dim, context);
      head.begin();
      for (int64_t one = 0; one < head.num_queries; ++one) {
        head.set_query(one, queries + head_of(one) * query.stride(1) + token_of(one) * query.stride(2));
      }
      head.score(keys, context, static_cast<float>(scaling * kLog2E));
      for (int64_t one = 0; one < head.num_queries; ++one) hide(head, one, pass.rows[row], node_of(one), width, window);
      head.weigh(context);
      for (int64_t first = 0; first < head.num_queries; first += kSums) {
        const int64_t count = std::min<int64_t>(kSums, head.num_queries - first);
        T* places[kSums];
        for (int64_t i = 0; i < count; ++i) {
          places[i] = to + (token_of(first + i) * heads + head_of(first + i)) * dim;
        }
        if (count > kSums / 2) {
          head.add_values<kSums>(keys + to_values, context, first, places);
        } else {
          head.add_values<kSums / 2>(keys + to_values, context, first, places);
        }
      }
    }
  });
  return out;
}

at::Tensor attention_shape(const at::Tensor& query, const at::Tensor&, const at::Tensor&, const at::Tensor&, double) {
  return query.new_empty_symint({query.sym_size(0), query.sym_size(2), query.sym_size(1), query.sym_size(3)});
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(draftless_cpu, library) {
  library.def("attention(Tensor query, Tensor key, Tensor value, Tensor place, float scaling) -> Tensor");
}

TORCH_LIBRARY_IMPL(draftless_cpu, CPU, library) {
  library.impl("attention", &attention);
}

TORCH_LIBRARY_IMPL(draftless_cpu, Meta, library) { library.impl("attention", &attention_shape); }

PYBIND11_MODULE(attention, module) {
  module.def("begin_pass", &begin_pass);
}
