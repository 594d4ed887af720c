// One estimate from several sources, and what probes are worth: `draftless.drafters.fusion`, `near_top` and
// `probe_worth`.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <iterator>
#include <utility>
#include <vector>

namespace {

struct Candidate {
  int64_t token_id;
  int64_t cell;
};
using Found = std::vector<Candidate>;

int64_t share_cell(double share, bool is_best) {
  const double odds = std::nearbyint(std::log(share / (1.0 + 1e-6 - share)));
  return (static_cast<int64_t>(std::max(-4.0, std::min(4.0, odds))) + 4) * kRanks + !is_best;
}

template <typename Id, typename Score>
void add_shares(const Id* ids, const Score* scores, int64_t count, double least, int64_t first_cell, Found& found) {
  double weights[kNumShared], total = 0.0;
  for (int64_t rank = 0; rank < count; ++rank) {
    weights[rank] = std::exp(static_cast<double>(scores[rank]) - static_cast<double>(scores[0]));
    total += weights[rank];
  }
  for (int64_t rank = 0; rank < count; ++rank) {
    const double share = weights[rank] / total;
    if (!(share >= least)) break;  // nor where logits are not finite
    found.push_back({static_cast<int64_t>(ids[rank]), first_cell + share_cell(share, rank == 0)});
  }
}

class Fusion {
 public:
  std::vector<double> weights;

  struct Scored {
    int64_t token_id;
    double score;
  };

  // Chance and token of every candidate, the likeliest first.
  void chances(const Found& found, int64_t none_cell, std::vector<std::pair<double, int64_t>>& ranked) {
    score(found, none_cell);
    ranked.clear();
    for (const Scored& one : scores_) ranked.emplace_back(one.score / total_, one.token_id);
    std::sort(ranked.begin(), ranked.end(), std::greater<>());
  }

  void learn(const Found& found, int64_t none_cell, int64_t token_id) {
    score(found, none_cell);
    for (const Candidate& one : found) {
      const double error = (one.token_id == token_id) - of(one.token_id)->score / total_;
      if (std::abs(error) > kSure) weights[one.cell] += kRate * error;
    }
    weights[none_cell] += kRate * ((of(token_id) == nullptr) - none_ / total_);
  }

  // Of a candidate; without what cells from `without` on say.
  double chance(const Found& found, int64_t none_cell, int64_t token_id, int64_t without) {
    heard_.clear();
    for (const Candidate& one : found) {
      if (one.cell < without) heard_.push_back(one);
    }
    score(heard_, none_cell);
    const Scored* one = of(token_id);
    return (one == nullptr ? 0.0 : one->score) / total_;
  }

 private:
  void score(const Found& found, int64_t none_cell) {
    scores_.clear();
    for (const Candidate& one : found) {
      Scored* known = of(one.token_id);
      if (known == nullptr) {
        scores_.push_back({one.token_id, weights[one.cell]});
      } else {
        known->score += weights[one.cell];
      }
    }
    total_ = none_ = std::exp(weights[none_cell]);
    for (Scored& one : scores_) {
      one.score = std::exp(one.score);
      total_ += one.score;
    }
  }

  Scored* of(int64_t token_id) {
    for (Scored& one : scores_) {
      if (one.token_id == token_id) return &one;
    }
    return nullptr;
  }

  std::vector<Scored> scores_;
  Found heard_;
  double total_ = 0.0, none_ = 0.0;
};

class ProbeWorth {
 public:
  static constexpr int64_t kSlots = std::size(kWorthPrior);
  double of_slots[kSlots];

  ProbeWorth() { std::copy(std::begin(kWorthPrior), std::end(kWorthPrior), of_slots); }

  // `added(place)`: what the probe that spoke there added to the chance of the target's token.
  template <typename Added>
  void learn(const std::vector<int64_t>& slots, const Added& added) {
    bool spoke[kSlots] = {false};
    for (int64_t place = 0; place < std::min<int64_t>(slots.size(), kSlots); ++place) {
      const int64_t index = std::min(slots[place], kSlots) - 1;
      of_slots[index] += kWorthRate * (kGoesOn * added(place) - of_slots[index]);
      spoke[index] = true;
    }
    for (int64_t index = 0; index < kSlots; ++index) {
      if (!spoke[index]) of_slots[index] += kWorthDrift * (kWorthPrior[index] - of_slots[index]);
    }
  }
};

}  // namespace
