// Attention of few queries over what is cached: the query heads of a KV head side by side.
//
// A score is one sum over the head's numbers, in order. What a query sees is then brought into the order of its path,
// and the sums of the softmax and of the values go along it. So a node of a tree gets the bits that plain decoding
// gets, whatever stands beside it and wherever in the cache its ancestors lie; what it does not see is not touched.

#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "attention_part.h"
#include "pool.h"

namespace draftless {

// New keys or values of a pass, [rows * width, kv_heads, dim], rows of tokens `stride` numbers apart.
struct States {
  const void* data;
  int64_t stride, dim;
};

// Copies the states of tokens `first` .. `last` of a pass behind what is cached in `cache` [rows, kv_heads, capacity,
// slot].
inline void append(const Attention& of, const States& states, void* cache, int64_t first, int64_t last) {
  const int64_t size = size_of(of.dtype), width = of.pass->width();
  for (int64_t token = first; token < last; ++token) {
    const int64_t row = token / width, place = of.pass->start(row) + token % width;
    for (int64_t head = 0; head < of.kv_heads; ++head) {
      const char* from = static_cast<const char*>(states.data) + (token * states.stride + head * states.dim) * size;
      char* to = static_cast<char*>(cache) + ((row * of.kv_heads + head) * of.capacity + place) * of.slot * size;
      std::memcpy(to, from, states.dim * size);
    }
  }
}

namespace attention_detail {

constexpr int64_t kQueries = 32;  // of a KV head at once, so that their scores stay in the cache
constexpr int64_t kPacking = 4;   // queries whose scores and values take as long as to pack the keys

// Into how many parts the queries of each head are cut: as few as keep all threads busy, since a part packs all keys.
inline int64_t parts_of(int64_t queries, int64_t heads, int64_t threads) {
  const auto cost = [&](int64_t parts) {
    return (heads * parts + threads - 1) / threads * (kPacking + (queries + parts - 1) / parts);
  };
  int64_t best = (queries + kQueries - 1) / kQueries;
  for (int64_t parts = best + 1; parts <= std::min(queries, 4 * threads); ++parts) {
    if (cost(parts) < cost(best)) best = parts;
  }
  return best;
}

template <class T>
void attend(const Attention& of, Pool& pool) {
  const int64_t queries = of.pass->width() * (of.heads / of.kv_heads), heads = of.pass->rows() * of.kv_heads;
  const int64_t wanted = parts_of(queries, heads, pool.threads()), size = (queries + wanted - 1) / wanted;
  const int64_t parts = (queries + size - 1) / size;
  pool.run(heads * parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      const int64_t first = index % parts * size, head = index / parts;
      Part<T>(of, head / of.kv_heads, head % of.kv_heads, first, std::min(size, queries - first)).attend();
    }
  });
}

}  // namespace attention_detail

// Attention of all queries of a pass, whose keys and values are in the cache.
inline void attention(const Attention& of, Pool& pool) {
  if (of.dtype == kFloat) return attention_detail::attend<float>(of, pool);
  attention_detail::attend<BFloat16>(of, pool);
}

}  // namespace draftless
