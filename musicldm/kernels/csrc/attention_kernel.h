// Attention for one block of queries of one head: softmax(q kᵀ / √d) v with heads of 32 channels, in tensor cores.
//
//     q, o (B, N, H, 32)   k, v (B, M, H, 32)   16 bits an element, any strides, last axis contiguous
//
// Each warp keeps 16 or 32 queries in registers and goes through the keys in tiles of 64, which cp.async brings into a
// ring of four tiles in shared memory. The softmax is online: weights are powers of two
// relative to a reference score of each row, which moves, and what was summed with it, only when a score exceeds it so
// far that weights would grow beyond 2^8. Sums of the weights come from the tensor cores too, as a channel of ones.
//
// Milakov and Gimelshein (2018), online softmax. https://arxiv.org/abs/1805.02867
// Dao (2023), FlashAttention-2. https://arxiv.org/abs/2307.08691
//
// What the hardware does is behind the functions of primitives.cuh, which must be included first. The tests run this
// very file on the CPU with their own versions of those functions.
#pragma once

#include <cstdint>

namespace musicldm {

constexpr int HEAD = 32;        // channels of a head
constexpr int WARPS = 4;        // of a block
constexpr int TILE = 64;        // keys in one tile
constexpr int STAGES = 4;       // tiles in shared memory
constexpr int ROW_BYTES = 2 * HEAD;
constexpr int CHUNKS = ROW_BYTES / 16;        // 16-byte pieces of a row
constexpr int TILE_BYTES = TILE * ROW_BYTES;  // of keys, or of values
constexpr int STEP = TILE / 2;                // keys that are worked on together
constexpr int KEY_BLOCKS = STEP / 8;          // a matrix product has 8 columns: keys in q kᵀ, channels in p v
constexpr int CHANNEL_BLOCKS = HEAD / 8;
constexpr float MINUS_INFINITY = -__builtin_huge_valf();
constexpr float LEAST = -3e38f;   // a reference below all scores, finite so that masked ones weigh nothing
constexpr float HEADROOM = 8.0f;  // weights reach 2^HEADROOM

struct Strides {  // in elements
  int64_t batch, token, head;
};

struct Arguments {
  const uint16_t *q, *k, *v;
  uint16_t* o;
  Strides q_strides, k_strides, v_strides, o_strides;
  int heads, n_queries, n_keys;
  int window;   // time positions to either side that a query attends to, or -1 for all
  int mel;      // tokens at one time position; 1 without a window
  float scale;  // log2(e) / √d, so that exponentials are powers of two
};

struct Range {
  int first, end;
  FUNCTION bool holds(int index) const { return first <= index && index < end; }
};

// The keys that query `row` attends to.
template <bool WINDOWED>
FUNCTION Range keys_of(const Arguments& a, int row) {
  if constexpr (!WINDOWED) return {0, a.n_keys};
  const int64_t time = row / a.mel;
  const int64_t first = (time - a.window) * a.mel, end = (time + a.window + 1) * a.mel;
  return {static_cast<int>(first > 0 ? first : 0), static_cast<int>(end < a.n_keys ? end : a.n_keys)};
}

// Where a 16-byte piece of a tile's row lies. Pieces are permuted so that the 8 rows of a matrix, 64 bytes apart, lie in
// different banks; rows 8 apart are permuted alike.
FUNCTION int place(int row, int chunk) { return row * ROW_BYTES + 16 * (chunk ^ ((row >> 1) & (CHUNKS - 1))); }

// A thread's share in bringing tile after tile of one head's keys or values; rows from `end` on become zero.
template <bool ALIGNED>
struct Loader {
  static constexpr int ROWS_AT_ONCE = 32 * WARPS / CHUNKS;  // a multiple of 8
  const uint16_t* from;
  int64_t stride;
  int row, end, to;

  FUNCTION Loader(const uint16_t* source, int64_t stride, Range rows, int thread)
      : from(source + (rows.first + thread / CHUNKS) * stride + 8 * (thread % CHUNKS)),
        stride(stride),
        row(rows.first + thread / CHUNKS),
        end(rows.end),
        to(place(thread / CHUNKS, thread % CHUNKS)) {}

  FUNCTION void next(char* shared) {
#pragma unroll
    for (int i = 0; i < TILE; i += ROWS_AT_ONCE) {
      const bool inside = row + i < end;
      char* piece = shared + to + i * ROW_BYTES;
      if constexpr (ALIGNED) {
        copy_async(piece, from + i * stride, inside);
      } else {
#pragma unroll
        for (int j = 0; j < 8; ++j)
          reinterpret_cast<uint16_t*>(piece)[j] = inside ? load_element(from + i * stride + j) : uint16_t{0};
      }
    }
    row += TILE;
    from += TILE * stride;
  }
};

// The work of one thread of a block, which has 16 QUERY_TILES queries for each warp, of one head of one item.
template <class Format, int QUERY_TILES, bool ALIGNED, bool WINDOWED>
FUNCTION void attend(const Arguments& a, int row_block, int head, int64_t batch, int thread, char* shared) {
  constexpr int ROWS = 16 * QUERY_TILES * WARPS;
  const int first_row = row_block * ROWS;
  const uint16_t* q = a.q + batch * a.q_strides.batch + head * a.q_strides.head;
  const uint16_t* k = a.k + batch * a.k_strides.batch + head * a.k_strides.head;
  const uint16_t* v = a.v + batch * a.v_strides.batch + head * a.v_strides.head;
  uint16_t* o = a.o + batch * a.o_strides.batch + head * a.o_strides.head;

  const int warp = thread / 32, lane = thread % 32;
  const int in_quad = lane % 4, quad = lane / 4;  // a lane holds rows quad and quad + 8 of a 16-row tile
  const int warp_row = first_row + 16 * QUERY_TILES * warp;

  // Tiles that hold any key of the block's queries, counted from the first such key.
  const int last_row = first_row + ROWS < a.n_queries ? first_row + ROWS - 1 : a.n_queries - 1;
  const Range block_keys{keys_of<WINDOWED>(a, first_row).first, keys_of<WINDOWED>(a, last_row).end};
  const int n_tiles = (block_keys.end - block_keys.first + TILE - 1) / TILE;

  Loader<ALIGNED> keys_loader(k, a.k_strides.token, block_keys, thread);
  Loader<ALIGNED> values_loader(v, a.v_strides.token, block_keys, thread);
  auto load = [&](int tile) {
    if (tile < n_tiles) {
      char* to = shared + tile % STAGES * 2 * TILE_BYTES;
      keys_loader.next(to);
      values_loader.next(to + TILE_BYTES);
    }
    commit_copies();  // an empty group too, so that groups count tiles
  };
#pragma unroll
  for (int tile = 0; tile < STAGES - 1; ++tile) load(tile);

  // Left operands of q kᵀ: 16 queries by 16 channels each. Queries beyond the end become zero and are not stored.
  uint32_t queries[QUERY_TILES][HEAD / 16][4];
#pragma unroll
  for (int m = 0; m < QUERY_TILES; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = warp_row + 16 * m + 8 * half + quad;
      const uint16_t* from = q + row * a.q_strides.token + 2 * in_quad;
#pragma unroll
      for (int channels = 0; channels < HEAD / 16; ++channels) {
#pragma unroll
        for (int part = 0; part < 2; ++part)
          queries[m][channels][2 * part + half] =
              row < a.n_queries ? load_pair<ALIGNED>(from + 16 * channels + 8 * part) : 0u;
      }
    }
  }
  // Keys that all of the warp's queries attend to; where a step has others, they are masked.
  const int warp_end = warp_row + 16 * QUERY_TILES - 1;
  const int warp_last = warp_end < a.n_queries ? warp_end : a.n_queries - 1;
  const Range all_attend{keys_of<WINDOWED>(a, warp_last).first, keys_of<WINDOWED>(a, warp_row).end};

  float scores[2][QUERY_TILES][KEY_BLOCKS][4];           // of this step and of the next
  float result[QUERY_TILES][CHANNEL_BLOCKS + 1][4] = {};  // the last block are sums of weights
  float reference[QUERY_TILES][2];
#pragma unroll
  for (int m = 0; m < QUERY_TILES; ++m) reference[m][0] = reference[m][1] = LEAST;
  const uint32_t ones = pack<Format>(1.0f, 1.0f);
  const int key_place = place(lane % 8, lane / 8), value_place = place(lane % 16, lane / 16);
  const float headroom = HEADROOM / a.scale;

  // Scores: 16 queries by 8 keys each. A lane holds columns 2 in_quad and the next, of rows quad and quad + 8.
  auto score = [&](float (&to)[QUERY_TILES][KEY_BLOCKS][4], int tile, int half_of_tile) {
    const char* keys = shared + tile % STAGES * 2 * TILE_BYTES + half_of_tile * STEP * ROW_BYTES + key_place;
#pragma unroll
    for (int n = 0; n < KEY_BLOCKS; ++n) {
      uint32_t right[4];  // 8 keys by 32 channels
      load_matrices(right, keys + 8 * n * ROW_BYTES);
#pragma unroll
      for (int m = 0; m < QUERY_TILES; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) to[m][n][i] = 0.0f;
        multiply_add<Format>(to[m][n], queries[m][0], right[0], right[1]);
        multiply_add<Format>(to[m][n], queries[m][1], right[2], right[3]);
      }
    }
  };
  // Mask the scores of a step, and move the references where a score exceeds one too far.
  auto settle = [&](float (&of)[QUERY_TILES][KEY_BLOCKS][4], int first_key) {
    if (first_key < all_attend.first || first_key + STEP > all_attend.end) {
#pragma unroll
      for (int m = 0; m < QUERY_TILES; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const Range keys_of_row = keys_of<WINDOWED>(a, warp_row + 16 * m + 8 * half + quad);
#pragma unroll
          for (int n = 0; n < KEY_BLOCKS; ++n)
#pragma unroll
            for (int i = 0; i < 2; ++i)
              if (!keys_of_row.holds(first_key + 8 * n + 2 * in_quad + i)) of[m][n][2 * half + i] = MINUS_INFINITY;
        }
      }
    }
    float greatest[QUERY_TILES][2];  // of this lane's scores
    bool exceeds = false;
#pragma unroll
    for (int m = 0; m < QUERY_TILES; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float maximum = larger(of[m][0][2 * half], of[m][0][2 * half + 1]);
#pragma unroll
        for (int n = 1; n < KEY_BLOCKS; ++n)
          maximum = larger(maximum, larger(of[m][n][2 * half], of[m][n][2 * half + 1]));
        greatest[m][half] = maximum;
        exceeds = exceeds || maximum > reference[m][half] + headroom;
      }
    }
    if (any_lane(exceeds)) {
#pragma unroll
      for (int m = 0; m < QUERY_TILES; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float maximum = larger(greatest[m][half], reference[m][half]);
          maximum = larger(maximum, from_lane_xor(maximum, 1));
          maximum = larger(maximum, from_lane_xor(maximum, 2));
          const float shrink = power_of_two((reference[m][half] - maximum) * a.scale);
          reference[m][half] = maximum;
#pragma unroll
          for (int c = 0; c <= CHANNEL_BLOCKS; ++c) {
            result[m][c][2 * half] *= shrink;
            result[m][c][2 * half + 1] *= shrink;
          }
        }
      }
    }
  };
  // Weights: the scores' layout, two blocks of 8 keys together, is that of a left operand of 16 by 16.
  auto weigh = [&](const float (&of)[QUERY_TILES][KEY_BLOCKS][4], int tile, int half_of_tile) {
    const char* values = shared + (tile % STAGES * 2 + 1) * TILE_BYTES + half_of_tile * STEP * ROW_BYTES;
#pragma unroll
    for (int n = 0; n < KEY_BLOCKS; n += 2) {
      uint32_t left[QUERY_TILES][4];
#pragma unroll
      for (int m = 0; m < QUERY_TILES; ++m) {
#pragma unroll
        for (int part = 0; part < 4; ++part) {
          const float shift = reference[m][part % 2] * a.scale;
          const float* pair = &of[m][n + part / 2][2 * (part % 2)];
          left[m][part] =
              pack<Format>(power_of_two(pair[0] * a.scale - shift), power_of_two(pair[1] * a.scale - shift));
        }
      }
#pragma unroll
      for (int c = 0; c < CHANNEL_BLOCKS; c += 2) {
        uint32_t right[4];  // 16 keys by channel block c, and by the next
        load_matrices_transposed(right, values + (value_place ^ 16 * c) + 8 * n * ROW_BYTES);
#pragma unroll
        for (int m = 0; m < QUERY_TILES; ++m) {
          multiply_add<Format>(result[m][c], left[m], right[0], right[1]);
          multiply_add<Format>(result[m][c + 1], left[m], right[2], right[3]);
        }
      }
#pragma unroll
      for (int m = 0; m < QUERY_TILES; ++m) multiply_add<Format>(result[m][CHANNEL_BLOCKS], left[m], ones, ones);
    }
  };

  wait_for_copies<STAGES - 2>();
  block_barrier();
  score(scores[0], 0, 0);
  for (int tile = 0; tile < n_tiles; ++tile) {
    const int first_key = block_keys.first + tile * TILE;
    settle(scores[0], first_key);
    score(scores[1], tile, 1);  // beside it, so that tensor cores and exponentials overlap
    weigh(scores[0], tile, 0);
    settle(scores[1], first_key + STEP);
    wait_for_copies<STAGES - 3>();  // this thread's part of the next tile is there
    block_barrier();                // everyone's is, and nobody reads the tile before this one any more
    load(tile + STAGES - 1);        // into that one's place
    score(scores[0], tile + 1, 0);  // after the last tile of whatever is there: not used
    weigh(scores[1], tile, 1);
  }
  wait_for_copies<0>();

#pragma unroll
  for (int m = 0; m < QUERY_TILES; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float share = 1.0f / result[m][CHANNEL_BLOCKS][2 * half];
      const int row = warp_row + 16 * m + 8 * half + quad;
      if (row >= a.n_queries) continue;
#pragma unroll
      for (int c = 0; c < CHANNEL_BLOCKS; ++c) {
        uint16_t* to = o + row * a.o_strides.token + 8 * c + 2 * in_quad;
        store_pair(to, pack<Format>(result[m][c][2 * half] * share, result[m][c][2 * half + 1] * share));
      }
    }
  }
}

}  // namespace musicldm
