// Attention for one block of queries of one head: softmax(q kᵀ / √d) v with heads of 32 channels, in tensor cores.
//
//     q, o (B, N, H, 32)   k, v (B, M, H, 32)   16 bits an element, any strides, last axis contiguous
//
// Each warp keeps 16 or 32 queries in registers and goes through the keys in tiles of 64, which cp.async brings into a
// ring of tiles in shared memory; up to 256 keys are all there at once. The softmax is online: row maxima and sums are
// carried from tile to tile and the result is rescaled when a maximum grows.
//
// Milakov and Gimelshein (2018), online softmax. https://arxiv.org/abs/1805.02867
// Dao (2023), FlashAttention-2. https://arxiv.org/abs/2307.08691
//
// What the hardware does is behind the functions of primitives.cuh, which must be included first. The tests run this
// very file on the CPU with their own versions of those functions.
#pragma once

#include <cstdint>

namespace musicldm {

constexpr int HEAD = 32;         // channels of a head
constexpr int WARPS = 4;         // of a block
constexpr int TILE = 64;         // keys in one tile
constexpr int ROW_BYTES = 2 * HEAD;
constexpr int CHUNKS = ROW_BYTES / 16;         // 16-byte pieces of a row
constexpr int TILE_BYTES = TILE * ROW_BYTES;   // of keys, or of values
constexpr int KEY_BLOCKS = TILE / 8;           // a matrix product has 8 columns: keys in q kᵀ, channels in p v
constexpr int CHANNEL_BLOCKS = HEAD / 8;
constexpr float MINUS_INFINITY = -__builtin_huge_valf();

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
FUNCTION Range keys_of(const Arguments& a, int row) {
  if (a.window < 0) return {0, a.n_keys};
  const int64_t time = row / a.mel;
  const int64_t first = (time - a.window) * a.mel, end = (time + a.window + 1) * a.mel;
  return {static_cast<int>(first > 0 ? first : 0), static_cast<int>(end < a.n_keys ? end : a.n_keys)};
}

// Where a 16-byte piece of a tile's row lies. Pieces are permuted so that the 8 rows of a matrix, 64 bytes apart, lie in
// different banks.
FUNCTION int place(int row, int chunk) { return row * ROW_BYTES + 16 * (chunk ^ ((row >> 1) & (CHUNKS - 1))); }

// Bring rows [first, first + TILE) of one head's keys or values into `shared`; rows from `end` on become zero.
template <bool ALIGNED>
FUNCTION void load_tile(char* shared, const uint16_t* source, int64_t stride, int first, int end, int thread) {
  constexpr int ROWS_AT_ONCE = 32 * WARPS / CHUNKS;  // a multiple of 8, so that `place` permutes them alike
  const int row = first + thread / CHUNKS, chunk = thread % CHUNKS;
  const uint16_t* from = source + row * stride + 8 * chunk;
  char* to = shared + place(thread / CHUNKS, chunk);
#pragma unroll
  for (int i = 0; i < TILE / ROWS_AT_ONCE; ++i) {
    const bool inside = row + i * ROWS_AT_ONCE < end;
    const uint16_t* piece = from + i * ROWS_AT_ONCE * stride;  // followed only if inside
    if constexpr (ALIGNED) {
      copy_async(to + i * ROWS_AT_ONCE * ROW_BYTES, inside ? piece : source, inside);
    } else {
      uint16_t* element = reinterpret_cast<uint16_t*>(to + i * ROWS_AT_ONCE * ROW_BYTES);
#pragma unroll
      for (int j = 0; j < 8; ++j) element[j] = inside ? load_element(piece + j) : uint16_t{0};
    }
  }
}

// STAGES tiles of keys and as many of values in `shared`; QUERY_TILES times 16 queries for each warp.
template <class Format, int QUERY_TILES, int STAGES, bool ALIGNED>
FUNCTION void attend(const Arguments& a, int64_t block, int thread, char* shared) {
  constexpr int ROWS = 16 * QUERY_TILES * WARPS;
  const int row_blocks = (a.n_queries + ROWS - 1) / ROWS;
  const int first_row = static_cast<int>(block % row_blocks) * ROWS;
  const int64_t pair = block / row_blocks, batch = pair / a.heads, head = pair % a.heads;
  const uint16_t* q = a.q + batch * a.q_strides.batch + head * a.q_strides.head;
  const uint16_t* k = a.k + batch * a.k_strides.batch + head * a.k_strides.head;
  const uint16_t* v = a.v + batch * a.v_strides.batch + head * a.v_strides.head;
  uint16_t* o = a.o + batch * a.o_strides.batch + head * a.o_strides.head;

  const int warp = thread / 32, lane = thread % 32;
  const int in_quad = lane % 4, quad = lane / 4;  // a lane holds rows quad and quad + 8 of a 16-row tile
  const int warp_row = first_row + 16 * QUERY_TILES * warp;

  // Tiles that hold any key of the block's queries, counted from the first such key.
  const int last_row = first_row + ROWS < a.n_queries ? first_row + ROWS - 1 : a.n_queries - 1;
  const Range block_keys{keys_of(a, first_row).first, keys_of(a, last_row).end};
  const int n_tiles = (block_keys.end - block_keys.first + TILE - 1) / TILE;

  auto keys_in = [&](int stage) { return shared + stage * 2 * TILE_BYTES; };
  auto load = [&](int tile) {
    if (tile < n_tiles) {
      const int first = block_keys.first + tile * TILE;
      char* to = keys_in(tile % STAGES);
      load_tile<ALIGNED>(to, k, a.k_strides.token, first, block_keys.end, thread);
      load_tile<ALIGNED>(to + TILE_BYTES, v, a.v_strides.token, first, block_keys.end, thread);
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
#pragma unroll
      for (int channels = 0; channels < HEAD / 16; ++channels) {
#pragma unroll
        for (int part = 0; part < 2; ++part) {
          const uint16_t* from = q + row * a.q_strides.token + 16 * channels + 8 * part + 2 * in_quad;
          queries[m][channels][2 * part + half] = row < a.n_queries ? load_pair<ALIGNED>(from) : 0u;
        }
      }
    }
  }
  // Keys that all of the warp's queries attend to, and those that any of them does.
  const int warp_end = warp_row + 16 * QUERY_TILES - 1;
  const int warp_last = warp_end < a.n_queries ? warp_end : a.n_queries - 1;
  const Range all_attend{keys_of(a, warp_last).first, keys_of(a, warp_row).end};
  const Range any_attends{keys_of(a, warp_row).first, keys_of(a, warp_last).end};

  float result[QUERY_TILES][CHANNEL_BLOCKS][4] = {};
  float greatest[QUERY_TILES][2], sum[QUERY_TILES][2] = {};  // the sum of this lane's columns only
#pragma unroll
  for (int m = 0; m < QUERY_TILES; ++m) greatest[m][0] = greatest[m][1] = MINUS_INFINITY;

  for (int tile = 0; tile < n_tiles; ++tile) {
    wait_for_copies<STAGES - 2>();  // this thread's part of the tile is there
    block_barrier();                // everyone's is, and nobody reads the tile before this one any more
    load(tile + STAGES - 1);        // into that one's place

    const int first_key = block_keys.first + tile * TILE;
    if (warp_row >= a.n_queries || first_key + TILE <= any_attends.first || first_key >= any_attends.end) continue;
    const char* keys = keys_in(tile % STAGES);
    const char* values = keys + TILE_BYTES;

    // Scores: 16 queries by 8 keys each. A lane holds columns 2 in_quad and the next, of rows quad and quad + 8.
    float scores[QUERY_TILES][KEY_BLOCKS][4];
#pragma unroll
    for (int n = 0; n < KEY_BLOCKS; ++n) {
      uint32_t right[4];  // 8 keys by 32 channels
      load_matrices(right, keys + place(8 * n + lane % 8, lane / 8));
#pragma unroll
      for (int m = 0; m < QUERY_TILES; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) scores[m][n][i] = 0.0f;
        multiply_add<Format>(scores[m][n], queries[m][0], right[0], right[1]);
        multiply_add<Format>(scores[m][n], queries[m][1], right[2], right[3]);
      }
    }
    if (first_key < all_attend.first || first_key + TILE > all_attend.end) {
#pragma unroll
      for (int m = 0; m < QUERY_TILES; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const Range keys_of_row = keys_of(a, warp_row + 16 * m + 8 * half + quad);
#pragma unroll
          for (int n = 0; n < KEY_BLOCKS; ++n)
#pragma unroll
            for (int i = 0; i < 2; ++i)
              if (!keys_of_row.holds(first_key + 8 * n + 2 * in_quad + i)) scores[m][n][2 * half + i] = MINUS_INFINITY;
        }
      }
    }

#pragma unroll
    for (int m = 0; m < QUERY_TILES; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float maximum = greatest[m][half];
#pragma unroll
        for (int n = 0; n < KEY_BLOCKS; ++n)
          maximum = larger(maximum, larger(scores[m][n][2 * half], scores[m][n][2 * half + 1]));
        maximum = larger(maximum, from_lane_xor(maximum, 1));
        maximum = larger(maximum, from_lane_xor(maximum, 2));
        // Where no key was seen yet all scores are minus infinity; any finite number in place of it gives zeros.
        const float shift = maximum == MINUS_INFINITY ? 0.0f : maximum * a.scale;
        const float shrink = power_of_two(greatest[m][half] * a.scale - shift);
        greatest[m][half] = maximum;
        sum[m][half] *= shrink;
#pragma unroll
        for (int c = 0; c < CHANNEL_BLOCKS; ++c) {
          result[m][c][2 * half] *= shrink;
          result[m][c][2 * half + 1] *= shrink;
        }
#pragma unroll
        for (int n = 0; n < KEY_BLOCKS; ++n) {
#pragma unroll
          for (int i = 2 * half; i < 2 * half + 2; ++i) {
            scores[m][n][i] = power_of_two(scores[m][n][i] * a.scale - shift);
            sum[m][half] += scores[m][n][i];
          }
        }
      }
    }

    // The scores' layout, two blocks of 8 keys together, is that of a left operand of 16 by 16.
#pragma unroll
    for (int pair_of_blocks = 0; pair_of_blocks < KEY_BLOCKS / 2; ++pair_of_blocks) {
      const int n = 2 * pair_of_blocks;
      uint32_t left[QUERY_TILES][4];
#pragma unroll
      for (int m = 0; m < QUERY_TILES; ++m) {
        left[m][0] = pack<Format>(scores[m][n][0], scores[m][n][1]);
        left[m][1] = pack<Format>(scores[m][n][2], scores[m][n][3]);
        left[m][2] = pack<Format>(scores[m][n + 1][0], scores[m][n + 1][1]);
        left[m][3] = pack<Format>(scores[m][n + 1][2], scores[m][n + 1][3]);
      }
#pragma unroll
      for (int c = 0; c < CHANNEL_BLOCKS; c += 2) {
        uint32_t right[4];  // 16 keys by channel block c, and by the next
        load_matrices_transposed(right, values + place(8 * n + lane % 16, c + lane / 16));
#pragma unroll
        for (int m = 0; m < QUERY_TILES; ++m) {
          multiply_add<Format>(result[m][c], left[m], right[0], right[1]);
          multiply_add<Format>(result[m][c + 1], left[m], right[2], right[3]);
        }
      }
    }
  }
  wait_for_copies<0>();

#pragma unroll
  for (int m = 0; m < QUERY_TILES; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float total = sum[m][half];
      total += from_lane_xor(total, 1);
      total += from_lane_xor(total, 2);
      const int row = warp_row + 16 * m + 8 * half + quad;
      if (row >= a.n_queries) continue;
#pragma unroll
      for (int c = 0; c < CHANNEL_BLOCKS; ++c) {
        uint16_t* to = o + row * a.o_strides.token + 8 * c + 2 * in_quad;
        store_pair(to, pack<Format>(result[m][c][2 * half] / total, result[m][c][2 * half + 1] / total));
      }
    }
  }
}

}  // namespace musicldm
