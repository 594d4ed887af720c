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

constexpr int64_t kQueries = 32;      // of a KV head at once, so that their scores stay in the cache
constexpr int64_t kShared = 1 << 15;  // numbers of keys that are worth to share a head between threads

// All steps of a part by one thread.
template <class T>
void attend_parts(const Attention& of, int64_t parts, int64_t size, Pool& pool) {
  const int64_t queries = of.pass->width() * (of.heads / of.kv_heads);
  pool.run(of.pass->rows() * of.kv_heads * parts, 1, [&](int64_t begin, int64_t end) {
    static thread_local std::vector<float> room;
    for (int64_t index = begin; index < end; ++index) {
      const int64_t first = index % parts * size, head = index / parts;
      Part<T> part(of, head / of.kv_heads, head % of.kv_heads, first, std::min(size, queries - first));
      if (room.size() < part.room()) room.resize(part.room());
      part.scores = room.data();
      part.score(0, part.key_blocks());
      for (int64_t i = 0; i < part.count; ++i) part.weigh(i);
      for (int64_t i = 0; i < part.count; i += kGroup) {
        part.add(i, std::min<int64_t>(kGroup, part.count - i), 0, of.value_dim);
      }
    }
  });
}

// Fewer KV heads than make all threads busy: they share each step, scores by keys and values by columns.
template <class T>
void attend_steps(const Attention& of, Pool& pool) {
  constexpr int64_t kBlocks = 256 / Keys<T>::kOutputs, kColumns = 2 * kLanes;
  const int64_t queries = of.pass->width() * (of.heads / of.kv_heads);
  static thread_local std::vector<float> room;
  std::vector<Part<T>> parts;
  size_t size = 0;
  int64_t pieces = 0;
  for (int64_t head = 0; head < of.pass->rows() * of.kv_heads; ++head) {
    parts.emplace_back(of, head / of.kv_heads, head % of.kv_heads, 0, queries);
    size += parts.back().room();
    pieces = std::max(pieces, (parts.back().key_blocks() + kBlocks - 1) / kBlocks);
  }
  if (room.size() < size) room.resize(size);
  float* scores = room.data();
  for (auto& part : parts) {
    part.scores = scores;
    scores += part.room();
  }
  const int64_t num_parts = parts.size(), columns = (of.value_dim + kColumns - 1) / kColumns;
  pool.run(num_parts * pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      const auto& part = parts[index / pieces];
      const int64_t first = index % pieces * kBlocks;
      if (first < part.key_blocks()) part.score(first, std::min(first + kBlocks, part.key_blocks()));
    }
  });
  pool.run(num_parts * queries, 1, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) parts[index / queries].weigh(index % queries);
  });
  const int64_t groups = (queries + kGroup - 1) / kGroup;
  pool.run(num_parts * groups * columns, 1, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      const int64_t query = index / columns % groups * kGroup, column = index % columns * kColumns;
      const int64_t last = std::min(column + kColumns, of.value_dim);
      parts[index / columns / groups].add(query, std::min<int64_t>(kGroup, queries - query), column, last);
    }
  });
}

template <class T>
void attend(const Attention& of, Pool& pool) {
  const int64_t queries = of.pass->width() * (of.heads / of.kv_heads), heads = of.pass->rows() * of.kv_heads;
  const int64_t parts = (queries + kQueries - 1) / kQueries;
  int64_t work = 0;
  for (int64_t row = 0; row < of.pass->rows(); ++row) work += of.kv_heads * of.pass->context(row) * of.key_dim;
  if (parts == 1 && heads < 2 * pool.threads() && heads % pool.threads() != 0 && work >= kShared) {
    return attend_steps<T>(of, pool);
  }
  attend_parts<T>(of, parts, (queries + parts - 1) / parts, pool);
}

}  // namespace attention_detail

// Attention of all queries of a pass, whose keys and values are in the cache.
inline void attention(const Attention& of, Pool& pool) {
  if (of.dtype == kFloat) return attention_detail::attend<float>(of, pool);
  attention_detail::attend<BFloat16>(of, pool);
}

}  // namespace draftless
