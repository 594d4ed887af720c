// What one request knows about its next tokens: `draftless.drafters.sources`.

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

namespace {

using Ids = std::vector<int64_t>;

struct Sampling {
  uint64_t noise;  // of seed and sample
  double temperature;
  bool is_truncated;
};

class Sources {
 public:
  SuffixIndex index;
  int64_t last = -1, before_last = -1;  // tokens of the text
  Ids slots;                            // of the probes that speak for depths 1, 2, ...

  Sources(std::shared_ptr<Successors> successors, std::optional<Sampling> sampling)
      : successors_(std::move(successors)), sampling_(sampling) {}

  void forget_ahead() {
    ahead_.clear();
    slots.clear();
  }

  // Takes in new text; how many of its last tokens stand in it before.
  int64_t look(const Ids& token_ids) {
    for (const int64_t token_id : token_ids) {
      index.extend(token_id);
      before_last = last;
      last = token_id;
    }
    num_tokens_ += static_cast<int64_t>(token_ids.size());
    return index.state.size - 1;
  }

  // Adds the candidates for a place `depth` tokens behind the text's last one; the cell of none of them.
  int64_t find(const SuffixIndex::State& context, int64_t before, int64_t token_id, int64_t depth, Found& found) const {
    const int64_t order = retrieve(context, depth, found);
    int64_t none_cell = kNone + (order == 0 ? 0 : order == 1 ? 1 : 2);
    const auto [said, first_cell] = successors_->after(before, token_id);
    if (said != nullptr) {
      none_cell += 3;
      add_said(*said, depth, first_cell, found);
    }
    if (depth <= static_cast<int64_t>(ahead_.size())) {
      none_cell += 6;
      found.insert(found.end(), ahead_[depth - 1].begin(), ahead_[depth - 1].end());
    }
    return none_cell;
  }

  // What the target said at the nodes of a step [N, V]; the first of them, the drafts, are learnt. `before_root` is
  // the token before the root, `ahead` are the nodes that speak for depths 1, 2, ... of the next tree.
  void observe(const at::Tensor& logits, int64_t num_drafts, const Ids& token_ids, const Ids& parents,
               int64_t before_root, const Ids& ahead) {
    const std::vector<Said> said = all_said(logits);
    for (int64_t node = 0; node < num_drafts; ++node) {
      successors_->learn(node == 0 ? before_root : token_ids[parents[node]], token_ids[node], said[node]);
    }
    listen(logits, said, ahead);
  }

 private:
  uint64_t stream(int64_t depth) const { return stream_of(sampling_->noise, num_tokens_ + depth - 1); }

  double least_share() const { return sampling_ ? kLeastCoupled : kLeastGreedy; }

  int64_t retrieve(const SuffixIndex::State& context, int64_t depth, Found& found) const {
    int64_t longest = 0;
    for (int64_t order = context.size - 1; order > 0; --order) {
      const SuffixIndex::Followers& below = index.followers(context.nodes[order]);
      const int64_t num_seen = static_cast<int64_t>(found.size());
      if (below.count <= num_seen) continue;
      if (longest == 0) longest = order;
      int64_t place = 0;
      for (const int64_t token_id : {below.newest, below.second}) {
        const auto is_same = [&](const Candidate& one) { return one.token_id == token_id; };
        if (token_id >= 0 && std::none_of(found.begin(), found.end(), is_same)) {
          const int64_t cell = kRetrieved + ((order - 1) * kNewest + place) * kKinds + (below.count > 1);
          found.push_back({token_id, cell});
        }
        ++place;
      }
      if (static_cast<int64_t>(found.size()) >= kMostRetrieved) break;
    }
    if (sampling_) {
      for (Candidate& one : found) {
        const double noise = noise_of(stream(depth), one.token_id);
        one.cell += (noise < 0.5 ? 0 : noise < 2.0 ? 1 : noise < 3.5 ? 2 : 3) - one.cell % kKinds;
      }
    }
    return longest;
  }

  void add_said(const Said& said, int64_t depth, int64_t first_cell, Found& found) const {
    const int64_t count = std::min(said.count, kNumShared);
    if (!sampling_) return add_shares(said.ids, said.logits, count, least_share(), first_cell, found);
    std::pair<double, int64_t> ranked[kNumLikely];
    for (int64_t i = 0; i < said.count; ++i) {
      const double noise = noise_of(stream(depth), said.ids[i]);
      ranked[i] = {-(static_cast<double>(said.logits[i]) / sampling_->temperature + noise), said.ids[i]};
    }
    std::partial_sort(ranked, ranked + count, ranked + said.count);
    int64_t ids[kNumShared];
    double scores[kNumShared];
    for (int64_t i = 0; i < count; ++i) {
      scores[i] = -ranked[i].first;
      ids[i] = ranked[i].second;
    }
    add_shares(ids, scores, count, least_share(), first_cell, found);
  }

  void add_best(const Best& best, int64_t first_cell, Found& found) const {
    int64_t ids[kNumShared];
    double scores[kNumShared];
    const int64_t count = static_cast<int64_t>(best.found.size());
    for (int64_t rank = 0; rank < count; ++rank) {
      scores[rank] = best.found[rank].first;
      ids[rank] = best.found[rank].second;
    }
    add_shares(ids, scores, count, least_share(), first_cell, found);
  }

  static std::vector<Said> all_said(const at::Tensor& logits) {
    const int64_t width = logits.size(1), stride = logits.stride(0);
    std::vector<Said> all(logits.size(0));
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, logits.scalar_type(), "all_said", [&] {
      const scalar_t* row = logits.const_data_ptr<scalar_t>();
      Finder<scalar_t> find;
      for (Said& said : all) {
        said.count = std::min(kNumLikely, width);
        find(row, width, said.count, said.ids, said.logits);
        row += stride;
      }
    });
    return all;
  }

  // What the target says at a node of a step, under the noise of a place `depth` tokens behind the text's last one.
  Best under_noise(const at::Tensor& logits, int64_t node, int64_t depth) const {
    const int64_t width = logits.size(1);
    Best best(std::min(kNumShared, width));
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, logits.scalar_type(), "under_noise", [&] {
      const scalar_t* row = logits.const_data_ptr<scalar_t>() + node * logits.stride(0);
      find_under_noise(row, width, sampling_->temperature, stream(depth), best);
    });
    return best;
  }

  // Keep what some nodes say about depths 1, 2, ... of the next tree.
  void listen(const at::Tensor& logits, const std::vector<Said>& said, const Ids& nodes) {
    ahead_.assign(nodes.size(), {});
    const bool is_drawn = sampling_ && !sampling_->is_truncated;
    for (size_t index = 0; index < nodes.size(); ++index) {
      const int64_t depth = static_cast<int64_t>(index) + 1;
      const int64_t first_cell =
          index < slots.size() ? kProbed + std::min(slots[index] - 1, kPlaces - 1) * kShares
                               : kDenoised + std::min(depth - 1, kPlaces - 1) * kShares;
      if (is_drawn) {
        add_best(under_noise(logits, nodes[index], depth), first_cell, ahead_[index]);
      } else {
        add_said(said[nodes[index]], depth, first_cell, ahead_[index]);
      }
    }
  }

  std::shared_ptr<Successors> successors_;
  std::optional<Sampling> sampling_;
  int64_t num_tokens_ = 0;
  std::vector<Found> ahead_;  // of depths 1, 2, ...
};

}  // namespace
