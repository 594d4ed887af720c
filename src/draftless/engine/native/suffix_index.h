// What followed each context of a growing text: `draftless.drafters.suffix_index`.

#include <c10/util/flat_hash_map.h>

#include <cstdint>
#include <vector>

namespace {

class SuffixIndex {
 public:
  struct Followers {
    int64_t newest = -1, second = -1;
    int64_t count = 0;
  };
  struct State {  // as many nodes as contexts are known
    int64_t nodes[kMaxOrder + 1] = {0};
    int64_t size = 1;

    void add(int64_t node) { nodes[size++] = node; }
  };

  State state;

  SuffixIndex() : followers_(1) {}

  const Followers& followers(int64_t node) const { return followers_[node]; }

  void extend(int64_t token_id) {
    State grown;
    for (int64_t order = 0; order < state.size; ++order) {
      const int64_t node = state.nodes[order];
      const auto [place, is_new] = children_.emplace(key(node, token_id), 0);
      if (is_new && order < kMaxOrder) place->second = static_cast<int64_t>(followers_.size());
      const int64_t child = place->second;
      Followers& below = followers_[node];
      below.count += is_new;
      if (below.newest != token_id) {
        below.second = below.newest;
        below.newest = token_id;
      }
      if (is_new && child != 0) followers_.emplace_back();
      if (child != 0) grown.add(child);
    }
    state = grown;
  }

  State after(const State& before, int64_t token_id) const {
    State grown;
    for (int64_t order = 0; order < before.size; ++order) {
      const auto child = children_.find(key(before.nodes[order], token_id));
      if (child == children_.end() || child->second == 0) break;
      grown.add(child->second);
    }
    return grown;
  }

 private:
  static uint64_t key(int64_t node, int64_t token_id) {
    return static_cast<uint64_t>(node) << 32 | static_cast<uint64_t>(token_id);
  }

  std::vector<Followers> followers_;
  ska::flat_hash_map<uint64_t, int64_t> children_;
};

}  // namespace
