// Plain threads for the cores, where there is no torch. They live only while a call computes (see Crew): between calls
// there is nothing that a fork could lose, nothing that waits, and nothing to stop at exit.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

#include "segops/parallel.h"

namespace segops {

// The processors this process may use, at most OMP_NUM_THREADS where that is set.
inline int usable_threads() {
  int count = int(std::thread::hardware_concurrency());
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) count = CPU_COUNT(&set);
#endif
  const char* wish = std::getenv("OMP_NUM_THREADS");  // "4", or "4,2" for nested regions
  if (const int threads = wish ? std::atoi(wish) : 0; threads > 0) count = std::min(count, threads);
  return std::max(1, count);
}

class ThreadParallel final : public Parallel {
 public:
  // Around every computation. Threads start when there is first work for them, and are joined at the end.
  class Crew {
   public:
    explicit Crew(ThreadParallel& parallel) : parallel_(parallel) { parallel.threads_ = usable_threads(); }
    ~Crew() { parallel_.dismiss(); }
    Crew(const Crew&) = delete;

   private:
    ThreadParallel& parallel_;
  };

  int threads() const override { return threads_; }

 private:
  // Which thread takes which task is left to chance; a task is told by its number alone what to do.
  void run_tasks(int tasks, void (*task)(const void*, int), const void* context) override {
    hire(std::min(tasks, threads_) - 1);
    {
      std::lock_guard lock(mutex_);
      task_ = task;
      context_ = context;
      next_ = 0;
      tasks_ = tasks;
    }
    wake_.notify_all();
    take_tasks();
    spin([&] { return active_ == 0; });
    std::unique_lock lock(mutex_);
    done_.wait(lock, [&] { return active_ == 0; });
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

  bool waiting() const { return next_ < tasks_; }

  void take_tasks() {
    for (int i; (i = next_++) < tasks_;) try {
        task_(context_, i);
      } catch (...) {
        std::lock_guard lock(mutex_);
        error_ = std::current_exception();
      }
  }

  void serve() {
    for (;;) {
      spin([&] { return stop_ || waiting(); });
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] { return stop_ || waiting(); });
      if (stop_) return;
      ++active_;  // under the lock: once all tasks are taken, nobody joins who could meet the next ones half written
      lock.unlock();
      take_tasks();
      lock.lock();
      if (--active_ == 0) done_.notify_one();
    }
  }

  void hire(int count) {
    while (int(crew_.size()) < count) try {
        crew_.emplace_back([this] { serve(); });
      } catch (const std::system_error&) {  // no more threads to be had: fewer do the same work
        break;
      }
  }

  void dismiss() {
    {
      std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    for (auto& thread : crew_) thread.join();
    crew_.clear();
    stop_ = false;
  }

  // The next work comes within microseconds, sooner than a sleeping thread wakes; after some twenty of them, sleep.
  template <class Ready>
  static void spin(const Ready& ready) {
    for (int i = 0; i < 1000 && !ready(); ++i) {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#else
      std::this_thread::yield();
#endif
    }
  }

  int threads_ = 1;
  std::vector<std::thread> crew_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::atomic<int> next_ = 0, tasks_ = 0, active_ = 0;
  std::atomic<bool> stop_ = false;
  void (*task_)(const void*, int) = nullptr;
  const void* context_ = nullptr;
  std::exception_ptr error_;
};

}  // namespace segops
