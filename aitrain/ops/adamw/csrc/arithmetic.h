// What AdamW does to one element, the same for the GPU and for the CPU on which it is tested.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define AITRAIN_BOTH __host__ __device__ __forceinline__
#else
#define AITRAIN_BOTH inline
#endif

namespace aitrain {

constexpr int kBlock = 256;       // elements that share a scale
constexpr int kGranule = 8;       // elements of a lane, and of one draw of random bits
constexpr int kOctaves = 24;      // rows of a code's table: one per power of two, and one with its ends
constexpr int kColumns = 8;       // of a row of the table of addresses
enum Column { kParam, kGrad, kFirst, kSecond, kFirstScale, kSecondScale, kSize, kOffset };
enum Stream { kOfParam, kOfFirst, kOfSecond };

struct Numbers {
  float clip, decay, step_size, inverse_root;  // from the device
  uint32_t step;
  float beta2, rest1, rest2, eps;
  uint64_t seed;
  bool stochastic;
};

struct alignas(16) Octave {
  float start, slope, slope_above, count;
};

AITRAIN_BOTH uint32_t as_bits(float x) {
#ifdef __CUDA_ARCH__
  return __float_as_uint(x);
#else
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
#endif
}

AITRAIN_BOTH float as_float(uint32_t bits) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(bits);
#else
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
#endif
}

AITRAIN_BOTH float from_bf16(uint16_t x) { return as_float(uint32_t(x) << 16); }

AITRAIN_BOTH uint32_t high(uint32_t a, uint32_t b) {
#ifdef __CUDA_ARCH__
  return __umulhi(a, b);
#else
  return uint32_t((uint64_t(a) * b) >> 32);
#endif
}

// Philox4x32-7, Salmon et al. 2011
AITRAIN_BOTH void philox(uint64_t granule, uint32_t step, uint32_t stream, uint64_t seed, uint32_t out[4]) {
  uint32_t c0 = uint32_t(granule), c1 = uint32_t(granule >> 32), c2 = step, c3 = stream;
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
  for (int round = 0; round < 7; ++round) {
    const uint32_t a = c0, b = c2;
    c0 = high(0xCD9E8D57u, b) ^ c1 ^ k0;
    c2 = high(0xD2511F53u, a) ^ c3 ^ k1;
    c1 = 0xCD9E8D57u * b;
    c3 = 0xD2511F53u * a;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

AITRAIN_BOTH uint32_t lane_bits(const uint32_t words[4], int lane) {
  return (words[lane >> 1] >> (16 * (lane & 1))) & 0xFFFFu;
}

// Stochastic with `noise` in [0, 65536); else to nearest, ties to even.
AITRAIN_BOTH uint16_t to_bf16(float x, uint32_t noise, bool stochastic) {
  const uint32_t bits = as_bits(x);
  const uint32_t up = bits + (stochastic ? noise : 0x7FFFu + ((bits >> 16) & 1u));
  return x != x ? uint16_t(0x7FC0) : uint16_t(up >> 16);  // the GPU's own NaN would carry into the sign
}

AITRAIN_BOTH float root(float x) {
#ifdef __CUDA_ARCH__
  float y;  // within one unit in the last place, at a fifth of the instructions
  asm("sqrt.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return std::sqrt(x);
#endif
}

AITRAIN_BOTH float quotient(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fdividef(a, b);
#else
  return a / b;
#endif
}

AITRAIN_BOTH void update(float& param, float grad, float& first, float& second, const Numbers& n) {
  grad *= n.clip;
  first = first + n.rest1 * (grad - first);
  second = n.beta2 * second + n.rest2 * grad * grad;
  param = param * n.decay - n.step_size * quotient(first, root(second) * n.inverse_root + n.eps);
}

// Code of y, a fraction of the block's largest magnitude. No power of two holds two decades' borders, so its row of the
// table and one comparison say which decade this is; codes.py defines it without a table.
template <bool SIGNED>
AITRAIN_BOTH uint8_t encode(float y, const Octave* table) {
  constexpr float first = SIGNED ? 1.0f : 2.0f;
  const float magnitude = std::fabs(y);
  int octave = int(as_bits(magnitude) >> 23) - (127 - (kOctaves - 1));
  octave = octave < 0 ? 0 : octave > kOctaves - 1 ? kOctaves - 1 : octave;
  const Octave row = table[octave], ends = table[kOctaves];
  const bool above = magnitude >= row.start;
  const float slope = above ? row.slope_above : row.slope;
  const float count = above ? 2.0f * row.count : row.count;
  float index = std::floor(magnitude * slope + count * float(8.0 / 9.0));
  index = std::fmin(std::fmax(index, count), 2.0f * count - 1.0f);
  if (SIGNED ? magnitude < ends.start : magnitude == 0.0f) index = first - 1.0f;
  if (magnitude >= ends.slope && y >= 0.0f) index = 128.0f * first;
  const int offset = int(index) - int(first - 1.0f);
  return uint8_t(SIGNED ? 127 + (y < 0.0f ? -offset : offset) : offset);
}

AITRAIN_BOTH float inverse_of(float scale) { return scale > 0.0f ? 1.0f / scale : 0.0f; }

}  // namespace aitrain
