// Runs the CUDA kernel's own source on the CPU: its index arithmetic, masks, tiles and synchronisation.
//
// Every thread of a block is a fiber. Instructions that a warp executes together (ldmatrix, mma, shuffles, votes) wait
// for all 32 lanes and fail where lanes do different things. Each warp runs on until all of its lanes wait for the block,
// the first warp first or the last warp first, so that one is as far ahead of the others as barriers let it be.
// Asynchronous copies arrive as late as they may or as early as they can; shared memory starts as NaN; reads and writes
// outside of the tensors fail. KERNEL names the file with the kernel's source.
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

#define FUNCTION inline __attribute__((always_inline))

namespace musicldm {

constexpr int LANES = 32, THREADS = 128;

struct Float16 {};
struct BFloat16 {};

struct Copy {
  void* to;
  const void* from;
  bool inside;
};

struct Deposit {
  int instruction = 0;
  int64_t number = -1;
  const void* address = nullptr;
  uint32_t words[6] = {};
  float value = 0;
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[256 * 1024]};
  bool finished = false, waits = false;  // for the whole block
  int64_t collectives = 0, barriers = 0;
  Deposit deposits[2];
  std::vector<Copy> open;                // not committed
  std::vector<std::vector<Copy>> groups;  // committed, in order
};

struct Block {
  std::vector<Fiber> fibers{THREADS};
  ucontext_t scheduler;
  int current = 0;
  bool early = false;
  const char* error = nullptr;
  struct { const char *first, *end; } ranges[4];
  const char *shared_first, *shared_end;
};
static Block* block;

static void fail(const char* what) {
  if (!block->error) block->error = what;
}
static Fiber& self() { return block->fibers[block->current]; }
static void yield() { swapcontext(&self().context, &block->scheduler); }

static bool within(const void* at, int size, int range) {
  const char* p = static_cast<const char*>(at);
  return block->ranges[range].first <= p && p + size <= block->ranges[range].end;
}
static bool readable(const void* at, int size) { return within(at, size, 0) || within(at, size, 1) || within(at, size, 2); }
static bool in_shared(const void* at, int size) {
  const char* p = static_cast<const char*>(at);
  return block->shared_first <= p && p + size <= block->shared_end;
}

// Give what this lane has for a collective instruction; returns when every lane of the warp has.
static int meet(int instruction, Deposit mine) {
  Fiber& fiber = self();
  mine.instruction = instruction;
  mine.number = fiber.collectives;
  const int slot = fiber.collectives++ % 2;
  fiber.deposits[slot] = mine;
  const int first = block->current / LANES * LANES;
  for (int rounds = 0; !block->error; ++rounds) {
    bool all = true;
    for (int lane = 0; lane < LANES; ++lane) {
      const Deposit& other = block->fibers[first + lane].deposits[slot];
      if (other.number == mine.number && other.instruction != instruction) fail("lanes of a warp diverge");
      all = all && other.number == mine.number;
    }
    if (all) break;
    if (rounds > 4 * THREADS) fail("a warp waits for lanes that do not come");
    yield();
  }
  return slot;
}
static const Deposit& lane_of_warp(int lane, int slot) {
  return block->fibers[block->current / LANES * LANES + lane].deposits[slot];
}

static float half_to_float(uint16_t bits) {
  _Float16 x;
  std::memcpy(&x, &bits, 2);
  return static_cast<float>(x);
}
static float bfloat_to_float(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float x;
  std::memcpy(&x, &wide, 4);
  return x;
}
template <class Format>
float to_float(uint16_t bits);
template <>
float to_float<Float16>(uint16_t bits) { return half_to_float(bits); }
template <>
float to_float<BFloat16>(uint16_t bits) { return bfloat_to_float(bits); }

static uint16_t round_to(Float16, float x) {
  const _Float16 rounded = static_cast<_Float16>(x);
  uint16_t bits;
  std::memcpy(&bits, &rounded, 2);
  return bits;
}
static uint16_t round_to(BFloat16, float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return static_cast<uint16_t>(x != x ? 0x7fff : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// --- what primitives.cuh does on a GPU -------------------------------------------------------------------------------

FUNCTION uint16_t load_element(const uint16_t* from) {
  if (!readable(from, 2)) return fail("an element outside of the tensors is read"), uint16_t{0};
  return *from;
}

template <bool ALIGNED>
FUNCTION uint32_t load_pair(const uint16_t* from) {
  if (ALIGNED && reinterpret_cast<uintptr_t>(from) % 4) fail("a pair is read off its boundary");
  return load_element(from) | static_cast<uint32_t>(load_element(from + 1)) << 16;
}

FUNCTION void store_pair(uint16_t* to, uint32_t pair) {
  if (!within(to, 4, 3) || reinterpret_cast<uintptr_t>(to) % 4) return fail("a pair is stored outside or off its boundary");
  std::memcpy(to, &pair, 4);
}

static void perform(const Copy& copy) {
  if (copy.inside)
    std::memcpy(copy.to, copy.from, 16);
  else
    std::memset(copy.to, 0, 16);
}

FUNCTION void copy_async(void* to, const void* from, bool inside) {
  if (reinterpret_cast<uintptr_t>(to) % 16 || (inside && reinterpret_cast<uintptr_t>(from) % 16)) return fail("a copy is not aligned");
  if (!in_shared(to, 16) || (inside && !readable(from, 16))) return fail("a copy goes outside");
  if (block->early)
    perform({to, from, inside});
  else
    self().open.push_back({to, from, inside});
}

FUNCTION void commit_copies() {
  self().groups.push_back(std::move(self().open));
  self().open.clear();
}

template <int PENDING>
FUNCTION void wait_for_copies() {
  auto& groups = self().groups;
  while (groups.size() > PENDING) {
    for (const Copy& copy : groups.front()) perform(copy);
    groups.erase(groups.begin());
  }
}

FUNCTION void block_barrier() {
  const int64_t number = ++self().barriers;
  for (int rounds = 0; !block->error; ++rounds) {
    bool all = true;
    for (const Fiber& fiber : block->fibers) {
      if (fiber.finished && fiber.barriers < number) fail("a thread ended before a barrier that others wait at");
      all = all && fiber.barriers >= number;
    }
    if (all) break;
    if (rounds > 1000 * THREADS) fail("a barrier that not all threads come to");
    self().waits = true;
    yield();
  }
  self().waits = false;
}

FUNCTION void matrices(uint32_t (&to)[4], const void* row, bool transposed) {
  if (!in_shared(row, 16) || reinterpret_cast<uintptr_t>(row) % 16) return fail("ldmatrix reads outside or off its boundary");
  Deposit mine;
  mine.address = row;
  const int slot = meet(transposed ? 2 : 1, mine), lane = block->current % LANES;
  if (block->error) return;
  for (int matrix = 0; matrix < 4; ++matrix) {
    bool banks[8] = {};
    uint16_t pair[2];
    for (int r = 0; r < 8; ++r) {
      const auto address = reinterpret_cast<uintptr_t>(lane_of_warp(8 * matrix + r, slot).address);
      if (banks[address / 16 % 8]) fail("rows of a matrix lie in one bank");
      banks[address / 16 % 8] = true;
    }
    for (int i = 0; i < 2; ++i) {
      const int r = transposed ? 2 * (lane % 4) + i : lane / 4, c = transposed ? lane / 4 : 2 * (lane % 4) + i;
      std::memcpy(&pair[i], static_cast<const char*>(lane_of_warp(8 * matrix + r, slot).address) + 2 * c, 2);
    }
    to[matrix] = pair[0] | static_cast<uint32_t>(pair[1]) << 16;
  }
}
FUNCTION void load_matrices(uint32_t (&to)[4], const void* row) { matrices(to, row, false); }
FUNCTION void load_matrices_transposed(uint32_t (&to)[4], const void* row) { matrices(to, row, true); }

// mma.m16n8k16: PTX ISA, "Matrix fragments for mma.m16n8k16 with floating point type".
template <class Format>
FUNCTION void multiply_add(float (&sum)[4], const uint32_t (&left)[4], uint32_t right0, uint32_t right1) {
  Deposit mine;
  std::memcpy(mine.words, left, 16);
  mine.words[4] = right0;
  mine.words[5] = right1;
  const int slot = meet(3, mine), lane = block->current % LANES;
  if (block->error) return;
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
    float total = sum[i];
    for (int k = 0; k < 16; ++k) {
      const Deposit& a = lane_of_warp(row % 8 * 4 + k % 8 / 2, slot);
      const Deposit& b = lane_of_warp(column * 4 + k % 8 / 2, slot);
      const uint32_t x = a.words[row / 8 + 2 * (k / 8)], y = b.words[4 + k / 8];
      total += to_float<Format>(x >> 16 * (k % 2)) * to_float<Format>(y >> 16 * (k % 2));
    }
    sum[i] = total;
  }
}

template <class Format>
FUNCTION uint32_t pack(float first, float second) {
  return round_to(Format{}, first) | static_cast<uint32_t>(round_to(Format{}, second)) << 16;
}

FUNCTION float power_of_two(float exponent) { return std::exp2(exponent); }
FUNCTION float larger(float a, float b) { return std::fmax(a, b); }

FUNCTION bool any_lane(bool of_this) {
  Deposit mine;
  mine.value = of_this;
  const int slot = meet(9, mine);
  bool any = false;
  for (int lane = 0; lane < LANES; ++lane) any = any || lane_of_warp(lane, slot).value != 0;
  return any;
}

FUNCTION float from_lane_xor(float value, int mask) {
  Deposit mine;
  mine.value = value;
  const int slot = meet(3 + mask, mine);
  return lane_of_warp((block->current % LANES) ^ mask, slot).value;
}

}  // namespace musicldm

#include KERNEL

namespace musicldm {

static Arguments arguments;
static int64_t block_index, row_blocks;
static char* shared_memory;
static void (*kernel)(const Arguments&, int, int, int64_t, int, char*);

static void enter() {
  const int64_t pair = block_index / row_blocks;
  kernel(arguments, block_index % row_blocks, pair % arguments.heads, pair / arguments.heads, block->current,
         shared_memory);
  self().finished = true;
  yield();
}

template <class Format, int QUERY_TILES, bool ALIGNED, bool WINDOWED>
static void choose() {
  kernel = [](const Arguments& a, int x, int y, int64_t z, int thread, char* shared) {
    attend<Format, QUERY_TILES, ALIGNED, WINDOWED>(a, x, y, z, thread, shared);
  };
}

template <class Format, bool WINDOWED>
static void choose(int query_tiles, bool aligned) {
  if (!aligned) return choose<Format, 1, false, WINDOWED>();
  return query_tiles == 2 ? choose<Format, 2, true, WINDOWED>() : choose<Format, 1, true, WINDOWED>();
}

}  // namespace musicldm

// Returns null, or what went wrong. `ends`: one past the last element of q, k, v and o that may be touched.
extern "C" const char* attend_on_cpu(const uint16_t* q, const uint16_t* k, const uint16_t* v, uint16_t* o,
                                     const uint16_t* const* ends, const int64_t* strides, int batch, int heads,
                                     int n_queries, int n_keys, int window, int mel, int bfloat, int query_tiles,
                                     int aligned, int early, int last_warp_first) {
  using namespace musicldm;
  auto stride = [&](int i) { return Strides{strides[3 * i], strides[3 * i + 1], strides[3 * i + 2]}; };
  const float scale = 1.4426950408889634 / std::sqrt(static_cast<double>(HEAD));
  arguments = {q, k, v, o, stride(0), stride(1), stride(2), stride(3), heads, n_queries, n_keys, window, mel, scale};
  if (window < 0)
    bfloat ? choose<BFloat16, false>(query_tiles, aligned) : choose<Float16, false>(query_tiles, aligned);
  else
    bfloat ? choose<BFloat16, true>(query_tiles, aligned) : choose<Float16, true>(query_tiles, aligned);
  const int rows = 16 * query_tiles * WARPS, bytes = STAGES * 2 * TILE_BYTES;
  row_blocks = (n_queries + rows - 1) / rows;
  const int64_t blocks = static_cast<int64_t>(batch) * heads * row_blocks;
  std::vector<char> memory(bytes + 128);
  shared_memory = memory.data() + (128 - reinterpret_cast<uintptr_t>(memory.data()) % 128);
  Block state;
  block = &state;
  state.early = early;
  const uint16_t* firsts[4] = {q, k, v, o};
  for (int i = 0; i < 4; ++i)
    state.ranges[i] = {reinterpret_cast<const char*>(firsts[i]), reinterpret_cast<const char*>(ends[i])};
  state.shared_first = shared_memory;
  state.shared_end = shared_memory + bytes;

  for (block_index = 0; block_index < blocks; ++block_index) {
    std::memset(shared_memory, 0xff, bytes);  // NaN in both formats
    for (Fiber& fiber : state.fibers) {
      fiber.finished = false;
      fiber.collectives = fiber.barriers = 0;
      fiber.deposits[0].number = fiber.deposits[1].number = -1;
      fiber.open.clear();
      fiber.groups.clear();
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = 256 * 1024;
      makecontext(&fiber.context, enter, 0);
    }
    for (bool running = true; running && !state.error;) {
      running = false;
      for (int turn = 0; turn < THREADS / LANES; ++turn) {
        const int first = LANES * (last_warp_first ? THREADS / LANES - 1 - turn : turn);
        for (bool moving = true; moving && !state.error;) {
          moving = false;
          for (state.current = first; state.current < first + LANES; ++state.current) {
            if (self().finished) continue;
            running = true;
            swapcontext(&state.scheduler, &self().context);
            moving = moving || !(self().finished || self().waits);
          }
        }
      }
    }
    if (state.error) return state.error;
    for (const Fiber& fiber : state.fibers)
      for (const auto& group : fiber.groups)
        if (!group.empty()) return "a thread ended before its copies";
  }
  return nullptr;
}
