// SPDX-License-Identifier: Apache-2.0
// Runs the layers of a transformer as a list of operations over rows of activations, in several threads with a barrier
// after each operation. Weights are read once, in panels of 16 outputs, so every load is full and sums run along lanes.
//
// A row is one token, with its position in its sequence and the pages of that sequence's keys and values. A batch may
// mix rows of several sequences. The result of a row does not depend on the others: the order of summation is fixed.

#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "attention.h"
#include "pack.h"
#include "products.h"
#include "rows.h"

namespace {

struct Team {
    int size;
    std::vector<std::thread> workers;
    std::mutex mutex;
    std::condition_variable wake;
    std::atomic<uint64_t> job{0};
    std::atomic<int> arrived{0};
    std::atomic<uint32_t> phase{0};
    std::atomic<int> next[2];
    std::atomic<bool> over{false};
    const Op *ops = nullptr;
    int n_ops = 0;
    const Rows *rows = nullptr;

    explicit Team(int n);
    ~Team();
    void work(int me);
    void barrier(int op);
};

inline void pause_() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

// The last thread to arrive resets the counter of this operation; the next operation uses the other one.
void Team::barrier(int op) {
    uint32_t mine = phase.load(std::memory_order_relaxed);
    if (arrived.fetch_add(1, std::memory_order_acq_rel) == size - 1) {
        arrived.store(0, std::memory_order_relaxed);
        next[op & 1].store(0, std::memory_order_relaxed);
        phase.store(mine + 1, std::memory_order_release);
        return;
    }
    for (int spins = 0; phase.load(std::memory_order_acquire) == mine;)
        if (++spins < 20000) pause_();
        else std::this_thread::yield();
}

// Copies the job first: after the last barrier the caller may write the next one at once.
void Team::work(int me) {
    const Op *of = ops;
    const Rows &on = *rows;
    const int n = n_ops;
    for (int i = 0, turn = 0; i < n; i++) {
        const Op &op = of[i];
        switch (op.kind) {
            case NORM: norm(op, on, next[turn & 1]); break;
            case LINEAR: linear(op, on, next[turn & 1]); break;
            case ACTIVATE: activate(op, on, next[turn & 1]); break;
            case QUANTIZE: quantize(op, on, next[turn & 1]); break;
            default:
                attend(op, on, next[turn & 1], me, true);
                barrier(turn++);
                attend(op, on, next[turn & 1], me, false);
        }
        barrier(turn++);
    }
}

Team::Team(int n) : size(n) {
    next[0] = next[1] = 0;
    for (int me = 1; me < size; me++)
        workers.emplace_back([this, me] {
            for (uint64_t seen = 0;;) {
                for (int spins = 0; job.load(std::memory_order_acquire) == seen && !over; spins++) {
                    if (spins < 4000) { pause_(); continue; }
                    std::unique_lock<std::mutex> lock(mutex);
                    wake.wait(lock, [&] { return job.load(std::memory_order_acquire) != seen || over; });
                }
                if (over) return;
                seen++;
                work(me);
            }
        });
}

Team::~Team() {
    {
        std::lock_guard<std::mutex> lock(mutex);
        over = true;
    }
    wake.notify_all();
    for (auto &worker : workers) worker.join();
}

}  // namespace

extern "C" {

int foundling_op_size() { return (int)sizeof(Op); }
int foundling_rows_size() { return (int)sizeof(Rows); }
void *foundling_team(int threads) { return new Team(threads); }
void foundling_disband(void *team) { delete (Team *)team; }

void foundling_run(void *of, const Op *ops, int n_ops, const Rows *rows) {
    Team &team = *(Team *)of;
    team.ops = ops, team.n_ops = n_ops, team.rows = rows;
    {
        std::lock_guard<std::mutex> lock(team.mutex);
        team.job.fetch_add(1, std::memory_order_release);
    }
    team.wake.notify_all();
    team.work(0);
}

}
