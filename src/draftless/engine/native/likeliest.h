// The largest logits per row.
//
// Numbers are compared by integer keys of their own size, so that one instruction compares many. A row is
// folded onto kColumns columns, keeping maxima: the `count`-th largest maximum is a bar that at least
// `count` logits reach, and hardly more. A second pass finds these.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

// Inductor turns this off for code of its own, which says itself what to vectorise.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("tree-loop-vectorize")
#endif

namespace {

constexpr int64_t kColumns = 64;

template <typename T>
using KeyOf = std::conditional_t<sizeof(T) == 2, int16_t, std::conditional_t<sizeof(T) == 4, int32_t, int64_t>>;

// Bits of infinity: above them lies what is no number.
template <typename T>
KeyOf<T> infinity() {
  const T value = std::numeric_limits<T>::infinity();
  KeyOf<T> bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Order of the numbers; what is no number comes last.
template <typename Key>
struct Ordered {
  static inline Key of(Key bits, Key infinite) {
    constexpr Key kMost = std::numeric_limits<Key>::max();
    const Key magnitude = bits & kMost;
    const Key ordered = bits < 0 ? static_cast<Key>(-magnitude) : magnitude;
    return magnitude > infinite ? std::numeric_limits<Key>::min() : ordered;
  }
};

// The same above zero, where the order of the numbers is that of their bits.
template <typename Key>
struct Bits {
  static inline Key of(Key bits, Key) { return bits; }
};

template <typename T>
struct Finder {
  using Key = KeyOf<T>;
  const Key infinite = infinity<T>();
  std::vector<std::pair<Key, int64_t>> found = {};

  // The best, the largest first; of equals the lowest ids.
  void operator()(const T* logits, int64_t width, int64_t count, int64_t* ids, float* values) {
    const Key* bits = reinterpret_cast<const Key*>(logits);
    found.clear();
    const auto [least, most] = bar<Bits<Key>>(bits, width, count);
    if (least > 0 && most <= infinite) {
      collect<Bits<Key>>(bits, width, least);
    } else {
      collect<Ordered<Key>>(bits, width, bar<Ordered<Key>>(bits, width, count).first);
    }
    const auto is_before = [](const auto& one, const auto& other) {
      return one.first != other.first ? one.first > other.first : one.second < other.second;
    };
    std::partial_sort(found.begin(), found.begin() + count, found.end(), is_before);
    for (int64_t i = 0; i < count; ++i) {
      ids[i] = found[i].second;
      values[i] = found[i].first == std::numeric_limits<Key>::min() ? -std::numeric_limits<float>::infinity()
                                                                    : static_cast<float>(logits[ids[i]]);
    }
  }

  // Everything that reaches a key.
  template <typename Order>
  void collect(const Key* bits, int64_t width, Key least) {
    const int64_t whole = width - width % kColumns;
    for (int64_t first = 0; first < whole; first += kColumns) {
      Key is_any = 0;
      for (int64_t i = 0; i < kColumns; ++i) is_any |= Order::of(bits[first + i], infinite) >= least;
      if (is_any) collect_between<Order>(bits, first, first + kColumns, least);
    }
    collect_between<Order>(bits, whole, width, least);
  }

  template <typename Order>
  void collect_between(const Key* bits, int64_t first, int64_t end, Key least) {
    int64_t hits[kColumns], num_hits = 0;  // without a branch that nobody can predict
    for (int64_t id = first; id < end; ++id) {
      hits[num_hits] = id;
      num_hits += Order::of(bits[id], infinite) >= least;
    }
    for (int64_t i = 0; i < num_hits; ++i) found.emplace_back(Order::of(bits[hits[i]], infinite), hits[i]);
  }

  // A key that at least `count` logits reach, and the largest of all.
  template <typename Order>
  std::pair<Key, Key> bar(const Key* bits, int64_t width, int64_t count) const {
    constexpr Key kLowest = std::numeric_limits<Key>::min();
    Key most = kLowest;
    if (count >= kColumns || width < kColumns) return {kLowest, most};
    Key maxima[kColumns];
    std::fill(maxima, maxima + kColumns, kLowest);
    const int64_t whole = width - width % kColumns;
    for (int64_t first = 0; first < whole; first += kColumns) {
      for (int64_t i = 0; i < kColumns; ++i) {
        const Key key = Order::of(bits[first + i], infinite);
        maxima[i] = key > maxima[i] ? key : maxima[i];
      }
    }
    for (int64_t id = whole; id < width; ++id) most = std::max(most, Order::of(bits[id], infinite));
    std::nth_element(maxima, maxima + count - 1, maxima + kColumns, std::greater<Key>());
    return {maxima[count - 1], std::max(most, *std::max_element(maxima, maxima + count))};
  }
};

}  // namespace
