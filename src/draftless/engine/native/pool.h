// Threads that share the steps of one forward pass at a time.
//
// A pass has hundreds of jobs of some 20 to 300 us, so between jobs a thread spins for a while before it sleeps.
// A job is cut into chunks that threads take one by one, the caller among them. Only chunks that were taken are
// waited for: a thread that the system does not let run costs at most the chunk that it holds.

#pragma once

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace draftless {

namespace pool_detail {

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits until `ready`, for a bounded time.
template <class Ready>
bool spin(Ready&& ready) {
  constexpr std::chrono::microseconds kPatience{50};
  const auto until = std::chrono::steady_clock::now() + kPatience;
  do {
    for (int i = 0; i < 32; ++i) {
      if (ready()) return true;
      pause();
    }
  } while (std::chrono::steady_clock::now() < until);
  return ready();
}

// How often this process came out of a fork: its threads stayed behind.
inline int forks() {
  static std::atomic<int> count{0};
  static const int registered = pthread_atfork(nullptr, nullptr, [] { count.fetch_add(1); });
  (void)registered;
  return count.load(std::memory_order_relaxed);
}

// Where threads sleep until something that is `ready` outside of the lock.
class Bed {
 public:
  template <class Ready>
  void sleep(Ready&& ready) {
    std::unique_lock<std::mutex> lock(mutex_);
    sleepers_.fetch_add(1);
    wake_.wait(lock, ready);
    sleepers_.fetch_sub(1);
  }

  // After what they wait for was made ready by a sequentially consistent store.
  void wake() {
    if (sleepers_.load() == 0) return;
    { std::lock_guard<std::mutex> lock(mutex_); }
    wake_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<int> sleepers_{0};
};

// The threads besides the caller's, and the job that they share.
class Crew {
 public:
  using Chunk = void (*)(const void* function, int64_t begin, int64_t end);

  explicit Crew(int workers) {
    for (int i = 0; i < workers; ++i) threads_.emplace_back([this] { work(); });
  }

  ~Crew() {
    stopping_.store(true);
    workers_.wake();
    for (auto& thread : threads_) thread.join();
  }

  void run(int64_t items, int64_t grain, Chunk chunk, const void* function) {
    const uint64_t chunks = (items + grain - 1) / grain;
    items_.store(items, std::memory_order_relaxed);
    grain_.store(grain, std::memory_order_relaxed);
    chunk_.store(chunk, std::memory_order_relaxed);
    function_.store(function, std::memory_order_relaxed);
    unfinished_.store(chunks, std::memory_order_relaxed);
    const uint64_t job = (job_.load(std::memory_order_relaxed) & ~kLeft) + kLeft + 1;
    job_.store(job | chunks);
    workers_.wake();
    take_chunks(job);
    const auto finished = [this] { return unfinished_.load() == 0; };
    if (!spin(finished)) caller_.sleep(finished);
  }

  static constexpr int64_t kMostChunks = (1 << 20) - 1;

 private:
  // The lower bits of `job_` are the number of chunks left, the others the number of the job. So who takes a
  // chunk knows that the job was not yet over, and that what it read of the job belongs to it.
  static constexpr uint64_t kLeft = kMostChunks;

  void take_chunks(uint64_t number) {
    for (uint64_t job = job_.load(); (job & ~kLeft) == number && (job & kLeft) != 0;) {
      const int64_t items = items_.load(std::memory_order_relaxed);
      const int64_t grain = grain_.load(std::memory_order_relaxed);
      const Chunk chunk = chunk_.load(std::memory_order_relaxed);
      const void* const function = function_.load(std::memory_order_relaxed);
      if (!job_.compare_exchange_weak(job, job - 1)) continue;
      const int64_t index = (items + grain - 1) / grain - static_cast<int64_t>(job & kLeft);
      chunk(function, index * grain, std::min(items, (index + 1) * grain));
      if (unfinished_.fetch_sub(1) == 1) caller_.wake();
      job = job_.load();
    }
  }

  void work() {
    const auto ready = [this] { return (job_.load() & kLeft) != 0 || stopping_.load(); };
    while (true) {
      if (!spin(ready)) workers_.sleep(ready);
      if (stopping_.load()) return;
      take_chunks(job_.load() & ~kLeft);
    }
  }

  alignas(64) std::atomic<uint64_t> job_{0};
  alignas(64) std::atomic<int64_t> items_{0};
  std::atomic<int64_t> grain_{1};
  std::atomic<Chunk> chunk_{nullptr};
  std::atomic<const void*> function_{nullptr};
  alignas(64) std::atomic<int64_t> unfinished_{0};
  std::atomic<bool> stopping_{false};
  Bed workers_, caller_;
  std::vector<std::thread> threads_;
};

}  // namespace pool_detail

// `threads` threads, the caller's among them. One thread at a time may call `run`, and not from within a job.
class Pool {
 public:
  explicit Pool(int threads) : threads_(std::max(1, threads)), forks_(pool_detail::forks()) {}
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;
  ~Pool() { leave_what_did_not_fork(); }

  int threads() const { return threads_; }

  void resize(int threads) {
    leave_what_did_not_fork();
    if (std::max(1, threads) == threads_) return;
    crew_.reset();
    threads_ = std::max(1, threads);
  }

  // Calls `function(begin, end)` for parts of 0 .. `items`, of `grain` items each (the last may be smaller), and
  // returns when all is done. The function must not throw.
  template <class Function>
  void run(int64_t items, int64_t grain, const Function& function) {
    if (items <= 0) return;
    grain = std::max({int64_t{1}, grain, (items + pool_detail::Crew::kMostChunks - 1) / pool_detail::Crew::kMostChunks});
    if (threads_ == 1 || items <= grain) return function(int64_t{0}, items);
    leave_what_did_not_fork();
    if (!crew_) crew_ = std::make_unique<pool_detail::Crew>(threads_ - 1);
    const auto chunk = [](const void* of, int64_t begin, int64_t end) {
      (*static_cast<const Function*>(of))(begin, end);
    };
    crew_->run(items, grain, chunk, &function);
  }

 private:
  // A forked child has the memory of the threads, but not the threads: they can be neither used nor joined.
  void leave_what_did_not_fork() {
    if (forks_ == pool_detail::forks()) return;
    forks_ = pool_detail::forks();
    (void)crew_.release();
  }

  int threads_, forks_;
  std::unique_ptr<pool_detail::Crew> crew_;
};

}  // namespace draftless
