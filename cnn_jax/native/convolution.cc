// CPU convolutions of float32 maps for cnn_jax/ops/native.py: the output, the input's gradient, the kernel's gradient;
// and the mean and variance of each channel, for batch normalization.
//
// All three are matrix products that never build the matrices. In a padded image the numbers under a row of the kernel
// are contiguous, kw·C of them, and those of the next output begin sx·C further on. So an output row is
//   y[ox, :] = sum over kernel rows i, and d < kw·C, of row_i[ox·sx·C + d] · kernel[i, d, :]
// and the kernel's gradient is the same sum over all ox instead of d. The innermost functions keep a tile of results in
// registers. The gradient of the input is itself such a convolution, of the output's gradient with the flipped kernel;
// with strides, one convolution per position within the stride.
//
// Groups are independent convolutions. With one channel each (depthwise) there is no sum over channels: a vector then
// holds neighbouring channels and is multiplied by as many of the kernel, instead of one number by many features.
//
// Work is cut so that numbers used repeatedly stay in the caches. The cuts depend on the sizes alone, so the results
// are bitwise the same with any number of threads.
//
// Layouts: maps (members, images, rows, columns, channels), kernels (members, rows, columns, channels, features).
// Members are independent convolutions, as from jax.vmap.

#include <algorithm>
#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;

#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr bool kManyRegisters = true;
#elif defined(__AVX__)
constexpr int kLanes = 8;
constexpr bool kManyRegisters = false;
#elif defined(__aarch64__)
constexpr int kLanes = 4;
constexpr bool kManyRegisters = true;
#else
constexpr int kLanes = 4;
constexpr bool kManyRegisters = false;
#endif
typedef float Vector __attribute__((vector_size(kLanes * sizeof(float)), aligned(alignof(float)), may_alias));

// Maximum rows of a tile V vectors wide. Each row is a pixel, whose address takes a register, too; and pixels with many
// channels fall into the same few sets of the L1 cache, which often has eight ways.
template <int V, bool Depthwise>
constexpr int kTileRows = Depthwise ? 8 : V == 1 ? (kManyRegisters ? 12 : 8) : (kManyRegisters ? 8 : 6);

// The same for the kernel's gradient, whose rows are contiguous: the tile, one row of it and one more vector fill the
// registers.
template <int V, bool Depthwise>
constexpr int kGradientRows = Depthwise ? 8 : V == 1 ? (kManyRegisters ? 16 : 8) : (kManyRegisters ? 12 : 6);

constexpr int64_t kLine = 16;                     // floats per cache line
constexpr int64_t kWide = 2 * kLanes;             // features per block, except in the last one
constexpr int64_t kKernelFloats = 24 * 1024;      // of a kernel, used together: part of the L2 cache
constexpr int64_t kLeastImageFloats = 16 * 1024;  // of a padded piece of images: part of it, too;
constexpr int64_t kMostImageFloats = 128 * 1024;  // more if the kernel is large, as each piece reads it again
constexpr int64_t kTasks = 16;                    // minimum number, if there is enough work
// For 3×3 kernels in fewer products:
constexpr int64_t kSquares = 96;       // of 2×2 outputs that are computed at once
constexpr int64_t kLeastSquares = 384;  // in all, as the kernel must be transformed first
constexpr int64_t kLeastMaps = 64;     // channels and features; with fewer, transforming takes longer than is saved
// For the kernel's gradient:
constexpr int64_t kPieceFloats = 64 * 1024;        // of a piece: maps and output's gradient together
constexpr int64_t kLeastPixels = 192;              // of a piece, as each piece updates all the sums
constexpr int64_t kMostPixels = 2048;
constexpr int64_t kPixelsPerPart = 512;            // minimum of a part with its own sums, which must be added up
constexpr int64_t kMostSums = 16 * 1024 * 1024;    // floats
constexpr int64_t kPackedFloats = 32 * 1024;       // of a piece, packed together

using Array = ffi::Buffer<ffi::F32, 5>;
using Result = ffi::ResultBuffer<ffi::F32, 5>;
using Window = ffi::Span<const int64_t>;  // strides of rows and columns, padding above, below, left, right; groups

// ------------------------------------------------------------------------------------------------- tiles in registers

Vector At(const float* x) { return *reinterpret_cast<const Vector*>(x); }

// Load V vectors from `features` numbers, and store them. They go through local vectors, because sums whose address is
// taken leave the registers.
template <int V>
inline void Load(Vector* to, const float* from, int64_t features) {
  Vector line[V] = {};
  if (features == V * kLanes) {  // a compile-time constant
    std::memcpy(line, from, sizeof(line));
  } else {
    std::memcpy(line, from, features * sizeof(float));
  }
  for (int v = 0; v < V; ++v) to[v] = line[v];
}

template <int V>
inline void Store(const Vector* from, float* to, int64_t features) {
  Vector line[V];
  for (int v = 0; v < V; ++v) line[v] = from[v];
  if (features == V * kLanes) {
    std::memcpy(to, line, sizeof(line));
  } else {
    std::memcpy(to, line, features * sizeof(float));
  }
}

// y[r, :] = (first ? 0 : y[r, :]) + sum over i and d of x[i·x_row + r·x_step + d·x_depth]·kernel[i, d, :], for r < R.
// kernel has V·kLanes columns; y has as many or, at the edge, `features`. Depthwise, x has columns, too.
template <int R, int V, bool Depthwise>
void Products(const float* x, int64_t x_row, int64_t x_step, int64_t x_depth, const float* kernel, int64_t rows,
              int64_t depth, float* y, int64_t y_step, int64_t features, bool first) {
  if constexpr (!Depthwise) x_depth = 1;
  Vector sums[R][V] = {};
  if (!first) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) Load<V>(sums[r], y + r * y_step, features);
  }
  for (int64_t i = 0; i < rows; ++i, x += x_row) {
    for (int64_t d = 0; d < depth; ++d, kernel += V * kLanes) {
      Vector k[V];
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) k[v] = At(kernel + v * kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) {
          if constexpr (Depthwise) {
            sums[r][v] += At(x + r * x_step + d * x_depth + v * kLanes) * k[v];
          } else {
            sums[r][v] += x[r * x_step + d] * k[v];
          }
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) Store<V>(sums[r], y + r * y_step, features);
}

// Pixels of padded images that outputs read; `image`, `row` and `column` are distances in floats.
struct Seen {
  const float* data;
  int64_t image, row, column, images, rows, columns;
};

// kernel[r, :] += sum over pixels p of x[p, r·x_depth]·g[p, :], for r < R. g has V·kLanes columns; kernel has as many
// in rows of `features`. Depthwise, x has columns, too. Each pixel prefetches `step` of the numbers from `ahead` on,
// which are read next.
template <int R, int V, bool Depthwise>
void Gradients(Seen x, int64_t x_depth, const float* g, int64_t g_image, float* kernel, int64_t features,
               const float* ahead, int64_t step) {
  if constexpr (!Depthwise) x_depth = 1;
  Vector sums[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) sums[r][v] = At(kernel + r * features + v * kLanes);
  }
  for (int64_t m = 0; m < x.images; ++m) {
    const float* next = g + m * g_image;
    for (int64_t i = 0; i < x.rows; ++i) {
      const float* pixel = x.data + m * x.image + i * x.row;
      for (int64_t j = 0; j < x.columns; ++j, pixel += x.column, next += V * kLanes, ahead += step) {
        __builtin_prefetch(ahead);
        Vector k[V];
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) k[v] = At(next + v * kLanes);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
          for (int v = 0; v < V; ++v) {
            if constexpr (Depthwise) {
              sums[r][v] += At(pixel + r * x_depth + v * kLanes) * k[v];
            } else {
              sums[r][v] += pixel[r] * k[v];
            }
          }
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) *reinterpret_cast<Vector*>(kernel + r * features + v * kLanes) = sums[r][v];
  }
}

// Packs the first n numbers of each pixel into tiles of R: (tile, pixel, R).
template <int R>
void Pack(const Seen& x, int64_t n, float* to) {
  const int64_t pixels = x.images * x.rows * x.columns, tiles = n / R;
  for (int64_t line = 0; line < x.images * x.rows; ++line) {
    const float* pixel = x.data + line / x.rows * x.image + line % x.rows * x.row;
    for (int64_t j = 0; j < x.columns; ++j, pixel += x.column, to += R) {
      for (int64_t t = 0; t < tiles; ++t) std::memcpy(to + t * pixels * R, pixel + t * R, R * sizeof(float));
      if (n % R != 0) std::memcpy(to + tiles * pixels * R, pixel + tiles * R, n % R * sizeof(float));
    }
  }
}

// Calls the instance for `tile` rows.
template <int V, bool Depthwise, int R = kTileRows<V, Depthwise>, typename... Arguments>
void ProductsOf(int64_t tile, Arguments... arguments) {
  if constexpr (R > 0) {
    if (tile == R) return Products<R, V, Depthwise>(arguments...);
    ProductsOf<V, Depthwise, R - 1>(tile, arguments...);
  }
}

template <int V, bool Depthwise, int R = kGradientRows<V, Depthwise>, typename... Arguments>
void GradientsOf(int64_t tile, Arguments... arguments) {
  if constexpr (R > 0) {
    if (tile == R) return Gradients<R, V, Depthwise>(arguments...);
    GradientsOf<V, Depthwise, R - 1>(tile, arguments...);
  }
}

// ------------------------------------------------------------------------------------------------------------- cutting

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t RoundUp(int64_t n) { return CeilDiv(n, kLanes) * kLanes; }

// Start of part `index` when n is cut into `parts` nearly equal parts.
int64_t Cut(int64_t n, int64_t index, int64_t parts) { return n * index / parts; }

// Thread-local memory for n floats, kept for the next call.
float* Scratch(std::vector<float>& memory, int64_t n) {
  if (static_cast<int64_t>(memory.size()) < n) memory.resize(n);
  return memory.data();
}
thread_local std::vector<float> image_memory, gradient_memory, tile_memory;

// Runs task(i) for all i < n, on this thread and on free threads of the pool. The caller takes tasks, too, until none
// is left, and then waits only for running ones: it cannot deadlock on a pool whose threads are all waiting.
void ParallelFor(ffi::ThreadPool& pool, int64_t n, const std::function<void(int64_t)>& task) {
  struct Shared {
    std::atomic<int64_t> next{0}, done{0};
    std::mutex mutex;
    std::condition_variable finished;
  };
  auto shared = std::make_shared<Shared>();  // a late helper still reads `next`
  std::function<void()> work = [shared, n, &task] {
    for (int64_t i; (i = shared->next++) < n;) {
      task(i);
      if (++shared->done == n) {
        std::lock_guard<std::mutex> lock(shared->mutex);
        shared->finished.notify_one();
      }
    }
  };
  const int64_t helpers = std::min<int64_t>(pool.num_threads(), n) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule(std::function<void()>(work));
  work();
  for (int i = 0; i < 200 && shared->done < n; ++i) std::this_thread::yield();  // quicker than sleeping and waking
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->finished.wait(lock, [&] { return shared->done == n; });
}

// Maps and a window that moves over them. `channels` and `features` are per group. Depthwise, all channels form one
// group, padded with zeros to whole vectors.
struct Geometry {
  int64_t images, height, width, groups, channels;
  int64_t kernel_height, kernel_width, row_stride, column_stride, top, left;
  int64_t output_height, output_width, features;
  bool depthwise;

  Geometry(int64_t images, int64_t height, int64_t width, int64_t groups, int64_t all_channels, int64_t kernel_height,
           int64_t kernel_width, int64_t row_stride, int64_t column_stride, int64_t top, int64_t left,
           int64_t output_height, int64_t output_width, int64_t all_features)
      : images(images),
        height(height),
        width(width),
        groups(groups),
        channels(all_channels / groups),
        kernel_height(kernel_height),
        kernel_width(kernel_width),
        row_stride(row_stride),
        column_stride(column_stride),
        top(top),
        left(left),
        output_height(output_height),
        output_width(output_width),
        features(all_features / groups),
        depthwise(groups > 1 && all_channels == groups && all_features == groups) {
    if (depthwise) {
      channels = features = groups;
      this->groups = 1;
    }
  }

  int64_t pixel() const { return groups * channels; }                   // floats per pixel of the maps
  int64_t image() const { return height * width * pixel(); }            // floats per image of the maps
  int64_t step() const { return depthwise ? RoundUp(channels) : channels; }  // floats per pixel that outputs read
  int64_t depth() const { return depthwise ? kernel_width : kernel_width * channels; }  // numbers summed per kernel row
  int64_t columns() const { return (output_width - 1) * column_stride + kernel_width; }  // that outputs read
  int64_t rows(int64_t outputs) const { return (outputs - 1) * row_stride + kernel_height; }  // read by `outputs` rows
  bool in_place() const {  // whether outputs can read the maps as they are
    return top == 0 && left == 0 && columns() <= width && rows(output_height) <= height && step() == pixel();
  }

  // Features of the block that begins at f, and maximum rows of its tiles.
  int64_t block(int64_t f) const { return features - f > kLanes && !depthwise ? kWide : kLanes; }
  int64_t tile_rows(int64_t block) const {
    return depthwise ? kTileRows<1, true> : block == kWide ? kTileRows<2, false> : kTileRows<1, false>;
  }
  int64_t gradient_rows(int64_t block) const {
    return depthwise ? kGradientRows<1, true> : block == kWide ? kGradientRows<2, false> : kGradientRows<1, false>;
  }
  // Whether the outputs are cheaper in squares of 2×2, of which those at the edge are computed in full.
  bool in_squares() const {
    const int64_t rows = CeilDiv(output_height, 2), columns = CeilDiv(output_width, 2);
    return kernel_height == 3 && kernel_width == 3 && row_stride == 1 && column_stride == 1 && groups == 1 &&
           !depthwise && channels % kLanes == 0 && features % kWide == 0 && channels >= kLeastMaps &&
           features >= kLeastMaps && images * rows * columns >= kLeastSquares &&
           2 * 4 * rows * columns <= 3 * output_height * output_width;
  }
  int64_t packed() const { return kernel_height * depth() * RoundUp(features); }  // floats of a group's packed kernel

  // How many neighbouring outputs are cheapest to compute as one: they fill whole vectors but multiply some zeros.
  int64_t neighbours() const {
    int64_t best = 1;
    const auto cost = [&](int64_t n) {  // of n outputs, in vector products
      return (kernel_width + (n - 1) * column_stride) * CeilDiv(n * features, kLanes);
    };
    for (int64_t n = 2; n * features <= kWide && groups == 1 && !depthwise; ++n) {
      if (output_width % n == 0 && cost(n) * best < cost(best) * n) best = n;
    }
    return best;
  }

  // Joins n neighbouring outputs of few features into one output of n times the features, whose wider kernel holds a
  // shifted copy of the kernel per output, and zeros.
  Geometry joined(int64_t n) const {
    Geometry wide = *this;
    wide.output_width /= n;
    wide.features *= n;
    wide.column_stride *= n;
    wide.kernel_width += (n - 1) * column_stride;
    return wide;
  }

  // Output rows per piece of an image.
  int64_t piece() const {
    const int64_t floats = std::clamp(packed(), kLeastImageFloats, kMostImageFloats);
    return std::clamp<int64_t>((floats / (columns() * step()) - kernel_height) / row_stride + 1, 1, output_height);
  }
  // Images per piece, if they are small and enough pieces and blocks of features remain to share out.
  int64_t batch() const {
    if (piece() < output_height) return 1;
    const int64_t floats = std::clamp(packed(), kLeastImageFloats, kMostImageFloats);
    const int64_t blocks = CeilDiv(features, block(0)), most = std::max<int64_t>(1, images * groups * blocks / kTasks);
    return std::clamp<int64_t>(floats / (rows(output_height) * columns() * step()), 1, std::min(images, most));
  }
};

// A piece of images with its padding; `image` and `row` are distances in floats.
struct Piece {
  const float* data;
  int64_t image, row;
};

void CopyPixels(const float* from, int64_t pixels, int64_t from_step, int64_t channels, float* to, int64_t to_step) {
  if (from_step == channels && to_step == channels) {
    std::copy_n(from, pixels * channels, to);
    return;
  }
  for (int64_t p = 0; p < pixels; ++p, from += from_step, to += to_step) {
    std::copy_n(from, channels, to);
    std::fill(to + channels, to + to_step, 0.0f);
  }
}

// Pads what `outputs` rows of a group's output read, from output row `first` on, in `images` images.
Piece Pad(const Geometry& of, const float* image, int64_t images, int64_t group, int64_t first, int64_t outputs) {
  if (of.in_place()) {
    const int64_t row = of.width * of.pixel();
    return {image + first * of.row_stride * row, of.image(), row};
  }
  const int64_t rows = of.rows(outputs), step = of.step(), row = of.columns() * step;
  const int64_t begin = std::clamp<int64_t>(of.left, 0, of.columns());
  const int64_t end = std::clamp<int64_t>(of.left + of.width, begin, of.columns());
  float* data = Scratch(image_memory, images * rows * row);
  float* out = data;
  for (int64_t i = 0; i < images * rows; ++i, out += row) {
    const int64_t y = first * of.row_stride + i % rows - of.top;
    if (y < 0 || y >= of.height) continue;  // padding rows, which the products skip
    const float* line = image + i / rows * of.image() + y * of.width * of.pixel();
    std::fill_n(out, begin * step, 0.0f);
    CopyPixels(line + (begin - of.left) * of.pixel() + group * of.channels, end - begin, of.pixel(), of.channels,
               out + begin * step, step);
    std::fill(out + end * step, out + row, 0.0f);
  }
  return {data, rows * row, row};
}

// --------------------------------------------------------------------------------------------------------- convolution

// Convolves all images. For each group, `kernel` holds blocks of features, each (kernel_height, depth, block). Outputs
// are y_image, y_row and y_step apart; features are contiguous.
void ConvolvePacked(ffi::ThreadPool& pool, const Geometry& of, const float* x, const float* kernel, float* y,
                    int64_t y_image, int64_t y_row, int64_t y_step) {
  const int64_t depth = of.depth(), x_depth = of.step(), x_step = of.column_stride * x_depth;
  const int64_t outputs = of.piece(), pieces = CeilDiv(of.output_height, outputs);
  const int64_t batches = CeilDiv(of.images, of.batch()), blocks = CeilDiv(of.features, of.block(0));
  const int64_t slices = std::min(blocks, CeilDiv(kTasks, batches * pieces * of.groups));
  ParallelFor(pool, batches * pieces * of.groups * slices, [&](int64_t task) {
    const int64_t slice = task % slices, group = task / slices % of.groups;
    const int64_t first_row = task / slices / of.groups % pieces * outputs;
    const int64_t batch = task / slices / of.groups / pieces;
    const int64_t first_image = Cut(of.images, batch, batches);
    const int64_t images = Cut(of.images, batch + 1, batches) - first_image;
    const int64_t rows = std::min(outputs, of.output_height - first_row);
    const Piece piece = Pad(of, x + first_image * of.image(), images, group, first_row, rows);
    const int64_t last = std::min(of.features, Cut(blocks, slice + 1, slices) * of.block(0));
    for (int64_t f = Cut(blocks, slice, slices) * of.block(0), next; f < last; f = next) {
      // Kernel rows, or blocks of features, used together; part of a row if one is too long.
      const int64_t width = of.block(f), fit = kKernelFloats / (depth * width);
      const int64_t together = std::clamp<int64_t>(fit, 1, of.kernel_height);
      const int64_t part = fit > 0 ? depth : kKernelFloats / width;
      next = std::min(last, f + std::max<int64_t>(1, fit / of.kernel_height) * width);
      const int64_t tiles = CeilDiv(of.output_width, of.tile_rows(width));
      for (int64_t i = 0; i < of.kernel_height; i += together) {
        for (int64_t d = 0; d < depth; d += part) {
          const int64_t height = std::min(together, of.kernel_height - i), length = std::min(part, depth - d);
          for (int64_t line = 0; line < images * rows; ++line) {
            const int64_t image = line / rows, row = line % rows;
            // Those of the kernel rows that meet the image, not its padding.
            const int64_t above = of.top - (first_row + row) * of.row_stride;
            const int64_t begin = std::clamp(above, i, i + height);
            const int64_t end = std::clamp(above + of.height, begin, i + height);
            const float* seen = piece.data + image * piece.image + (row * of.row_stride + begin) * piece.row;
            float* out_row = y + (first_image + image) * y_image + (first_row + row) * y_row + group * of.features;
            for (int64_t t = 0; t < tiles; ++t) {
              const int64_t column = Cut(of.output_width, t, tiles), tile = Cut(of.output_width, t + 1, tiles) - column;
              for (int64_t e = f; e < next; e += of.block(e)) {
                const int64_t filled = std::min(of.block(e), of.features - e);
                const int64_t place = e * of.kernel_height * depth + (begin * depth + d) * of.block(e);
                const float* weights = kernel + group * of.packed() + place;
                const float* in = seen + column * x_step + (of.depthwise ? d * x_depth + e : d);
                float* out = out_row + column * y_step + e;
                const auto run = [&](auto products) {
                  products(tile, in, piece.row, x_step, x_depth, weights, end - begin, length, out, y_step, filled,
                           i == 0 && d == 0);
                };
                if (of.depthwise) {
                  run([](auto... a) { ProductsOf<1, true>(a...); });
                } else if (of.block(e) == kWide) {
                  run([](auto... a) { ProductsOf<2, false>(a...); });
                } else {
                  run([](auto... a) { ProductsOf<1, false>(a...); });
                }
              }
            }
          }
        }
      }
    }
  });
}

// Packs a kernel into blocks for ConvolvePacked: write(group, f, n, d, out) writes n features from f on, at depth d.
template <typename Write>
std::unique_ptr<float[]> PackKernel(ffi::ThreadPool& pool, const Geometry& of, const Write& write) {
  auto packed = std::unique_ptr<float[]>(new float[of.groups * of.packed()]);
  const int64_t depth = of.kernel_height * of.depth(), blocks = CeilDiv(of.features, of.block(0));
  const int64_t pieces = CeilDiv(depth, 256);
  ParallelFor(pool, of.groups * blocks * pieces, [&](int64_t task) {
    const int64_t group = task / pieces / blocks, f = task / pieces % blocks * of.block(0), piece = task % pieces;
    const int64_t width = of.block(f), filled = std::min(width, of.features - f);
    for (int64_t d = Cut(depth, piece, pieces); d < Cut(depth, piece + 1, pieces); ++d) {
      float* out = packed.get() + group * of.packed() + f * depth + d * width;
      write(group, f, filled, d, out);
      std::fill(out + filled, out + width, 0.0f);
    }
  });
  return packed;
}

// Convolves with a 3×3 kernel in 16 instead of 36 products for each square of 2×2 outputs (Winograd 1980; Lavin and Gray
// 2015, F(2×2, 3×3)): squares of 4×4 pixels and the kernel are transformed to 4×4 numbers each, which are multiplied
// one by one and summed over channels, 16 matrix products; the sums are transformed to outputs.
template <typename Write>
void ConvolveInSquares(ffi::ThreadPool& pool, const Geometry& of, const float* x, const Write& write, float* y,
                       int64_t y_image, int64_t y_row, int64_t y_step) {
  const int64_t channels = of.channels, features = of.features;
  // The kernel is (block of features, 16, channel, kWide). Its 16 parts, and those of the maps, are not a power of two
  // apart, as they would fall into the same few cache sets.
  const int64_t size = channels * kWide + kLine;
  const auto kernel = std::unique_ptr<float[]>(new float[features / kWide * 16 * size]);
  const int64_t lines = features / kWide * channels, pieces = CeilDiv(lines, 64);
  ParallelFor(pool, pieces, [&](int64_t piece) {
    for (int64_t line = Cut(lines, piece, pieces); line < Cut(lines, piece + 1, pieces); ++line) {
      float taps[9][kWide];
      for (int64_t d = 0; d < 9; ++d) {
        write(0, line / channels * kWide, kWide, d * channels + line % channels, taps[d]);
      }
      float* out = kernel.get() + line / channels * 16 * size + line % channels * kWide;
      for (int64_t f = 0; f < kWide; f += kLanes) {
        Vector half[4][3];
        for (int j = 0; j < 3; ++j) {
          const Vector a = At(taps[j] + f), b = At(taps[3 + j] + f), c = At(taps[6 + j] + f);
          half[0][j] = a, half[1][j] = 0.5f * (a + b + c), half[2][j] = 0.5f * (a - b + c), half[3][j] = c;
        }
        for (int i = 0; i < 4; ++i) {
          const Vector a = half[i][0], b = half[i][1], c = half[i][2];
          const Vector all[4] = {a, 0.5f * (a + b + c), 0.5f * (a - b + c), c};
          for (int j = 0; j < 4; ++j) Store<1>(all + j, out + (4 * i + j) * size + f, kLanes);
        }
      }
    }
  });
  const int64_t rows = CeilDiv(of.output_height, 2), columns = CeilDiv(of.output_width, 2);
  constexpr int64_t kTogether = 2 * kWide;  // features
  const int64_t squares = of.images * rows * columns, parts = CeilDiv(squares, kSquares);
  const int64_t blocks = CeilDiv(features, kTogether), slices = std::min(blocks, CeilDiv(kTasks, parts));
  ParallelFor(pool, parts * slices, [&](int64_t task) {
    const int64_t slice = task % slices, part = task / slices;  // each slice of the features transforms the maps anew
    const int64_t begin = Cut(squares, part, parts), n = Cut(squares, part + 1, parts) - begin;
    const int64_t pitch = channels + kLine;
    const float* zeros = std::fill_n(Scratch(gradient_memory, channels), channels, 0.0f) - channels;
    float* const maps = Scratch(image_memory, 16 * n * pitch);
    for (int64_t s = 0; s < n; ++s) {
      const int64_t square = begin + s, image = square / columns / rows;
      const int64_t top = square / columns % rows * 2 - of.top, left = square % columns * 2 - of.left;
      const float* seen[4][4];
      for (int i = 0; i < 4; ++i) {
        for (int j = 0; j < 4; ++j) {
          const int64_t row = top + i, column = left + j;
          const bool inside = row >= 0 && row < of.height && column >= 0 && column < of.width;
          seen[i][j] = inside ? x + image * of.image() + (row * of.width + column) * channels : zeros;
        }
      }
      float* to = maps + s * pitch;
      for (int64_t c = 0; c < channels; c += kLanes) {
        Vector half[4][4];
        for (int j = 0; j < 4; ++j) {
          const Vector a = At(seen[0][j] + c), b = At(seen[1][j] + c), d = At(seen[2][j] + c), e = At(seen[3][j] + c);
          half[0][j] = a - d, half[1][j] = b + d, half[2][j] = d - b, half[3][j] = b - e;
        }
        for (int i = 0; i < 4; ++i) {
          const Vector all[4] = {half[i][0] - half[i][2], half[i][1] + half[i][2], half[i][2] - half[i][1],
                                 half[i][1] - half[i][3]};
          for (int j = 0; j < 4; ++j) Store<1>(all + j, to + (4 * i + j) * n * pitch + c, kLanes);
        }
      }
    }
    float* const sums = Scratch(tile_memory, 16 * n * kTogether);
    for (int64_t b = Cut(blocks, slice, slices); b < Cut(blocks, slice + 1, slices); ++b) {
      const int64_t f = b * kTogether;
      const int64_t width = std::min(kTogether, features - f), most = of.tile_rows(kWide), tiles = CeilDiv(n, most);
      for (int64_t k = 0; k < 16; ++k) {
        for (int64_t e = 0; e < width; e += kWide) {
          const float* weights = kernel.get() + ((f + e) / kWide * 16 + k) * size;
          for (int64_t t = 0; t < tiles; ++t) {
            const int64_t s = Cut(n, t, tiles), tile = Cut(n, t + 1, tiles) - s, zero = 0, one = 1, wide = kWide;
            ProductsOf<2, false>(tile, static_cast<const float*>(maps + (k * n + s) * pitch), zero, pitch, one, weights,
                                 one, channels, sums + (k * n + s) * kTogether + e, kTogether, wide, true);
          }
        }
      }
      for (int64_t s = 0; s < n; ++s) {
        const int64_t square = begin + s, image = square / columns / rows;
        const int64_t row = square / columns % rows * 2, column = square % columns * 2;
        float* out = y + image * y_image + row * y_row + column * y_step + f;
        for (int64_t e = 0; e < width; e += kLanes) {
          const float* from = sums + s * kTogether + e;
          Vector half[2][4], outputs[2][2];
          for (int j = 0; j < 4; ++j) {
            const auto sum = [&](int i) { return At(from + (4 * i + j) * n * kTogether); };
            const Vector b = sum(1), d = sum(2);
            half[0][j] = sum(0) + b + d, half[1][j] = b - d - sum(3);
          }
          for (int i = 0; i < 2; ++i) {
            outputs[i][0] = half[i][0] + half[i][1] + half[i][2];
            outputs[i][1] = half[i][1] - half[i][2] - half[i][3];
          }
          for (int i = 0; i < 2 && row + i < of.output_height; ++i) {
            for (int j = 0; j < 2 && column + j < of.output_width; ++j) {
              Store<1>(&outputs[i][j], out + i * y_row + j * y_step + e, kLanes);
            }
          }
        }
      }
    }
  });
}

// Convolves with the kernel that `write` provides; see PackKernel.
template <typename Write>
void Convolve(ffi::ThreadPool& pool, const Geometry& of, const float* x, const Write& write, float* y, int64_t y_image,
              int64_t y_row, int64_t y_step) {
  if (of.in_squares()) return ConvolveInSquares(pool, of, x, write, y, y_image, y_row, y_step);
  const int64_t n = y_step == of.features ? of.neighbours() : 1;
  const Geometry wide = of.joined(n);
  const auto packed = PackKernel(pool, wide, [&](int64_t group, int64_t f, int64_t filled, int64_t d, float* out) {
    if (n == 1) return write(group, f, filled, d, out);
    const int64_t row = d / wide.depth(), place = d % wide.depth();
    for (int64_t neighbour = 0; neighbour < n; ++neighbour, out += of.features) {
      const int64_t own = place - neighbour * of.column_stride * of.channels;
      if (own >= 0 && own < of.depth()) {
        write(0, 0, of.features, row * of.depth() + own, out);
      } else {
        std::fill_n(out, of.features, 0.0f);
      }
    }
  });
  ConvolvePacked(pool, wide, x, packed.get(), y, y_image, y_row, n * y_step);
}

ffi::Error Output(ffi::ThreadPool pool, Array x, Array kernel, Result y, Window window) {
  const auto in = x.dimensions(), size = kernel.dimensions(), out = y->dimensions();
  const Geometry of(in[1], in[2], in[3], window[6], in[4], size[1], size[2], window[0], window[1], window[2], window[4],
                    out[2], out[3], size[4]);
  const int64_t floats = size[1] * size[2] * size[3] * size[4], y_row = out[3] * out[4], y_image = out[2] * y_row;
  for (int64_t member = 0; member < in[0]; ++member) {
    const float* weights = kernel.typed_data() + member * floats;
    const auto write = [&](int64_t group, int64_t f, int64_t n, int64_t d, float* to) {
      std::copy_n(weights + d * out[4] + group * of.features + f, n, to);
    };
    Convolve(pool, of, x.typed_data() + member * of.images * of.image(), write,
             y->typed_data() + member * of.images * y_image, y_image, y_row, out[4]);
  }
  return ffi::Error::Success();
}

// Input rows q·stride + place meet the kernel rows first, first + stride, …: a convolution of stride 1 whose output 0
// begins `padding` rows before the gradient's first row.
struct Phase {
  int64_t outputs, first, taps, padding;

  Phase(int64_t place, int64_t stride, int64_t before, int64_t kernel, int64_t size) {
    outputs = CeilDiv(size - place, stride);
    first = ((place + before) % stride + stride) % stride;  // `before` may be negative
    taps = first < kernel ? CeilDiv(kernel - first, stride) : 0;
    padding = taps - 1 - (place + before - first) / stride;
  }
};

ffi::Error Input(ffi::ThreadPool pool, Array g, Array kernel, Result x, Window window) {
  const auto in = g.dimensions(), size = kernel.dimensions(), out = x->dimensions();
  const int64_t channels = size[3], features = size[4], x_row = out[3] * out[4], x_image = out[2] * x_row;
  for (int64_t task = 0; task < in[0] * window[0] * window[1]; ++task) {
    const int64_t member = task / (window[0] * window[1]), y = task / window[1] % window[0], x0 = task % window[1];
    const Phase rows(y, window[0], window[2], size[1], out[2]), columns(x0, window[1], window[4], size[2], out[3]);
    if (rows.outputs <= 0 || columns.outputs <= 0) continue;
    float* to = x->typed_data() + member * out[1] * x_image + y * x_row + x0 * out[4];
    if (rows.taps == 0 || columns.taps == 0) {  // no output reads them
      ParallelFor(pool, out[1], [&](int64_t image) {
        for (int64_t i = 0; i < rows.outputs * columns.outputs; ++i) {
          const int64_t row = i / columns.outputs * window[0], column = i % columns.outputs * window[1];
          std::fill_n(to + image * x_image + row * x_row + column * out[4], out[4], 0.0f);
        }
      });
      continue;
    }
    const Geometry of(in[1], in[2], in[3], window[6], features, rows.taps, columns.taps, 1, 1, rows.padding,
                      columns.padding, rows.outputs, columns.outputs, out[4]);
    const float* weights = kernel.typed_data() + member * size[1] * size[2] * channels * features;
    // Depth d is tap (i, j) of the flipped kernel and a feature of the group; channels are contiguous.
    const int64_t features_of = of.depthwise ? 1 : of.channels;
    const auto write = [&](int64_t group, int64_t c, int64_t n, int64_t d, float* out) {
      const int64_t f = d % features_of, j = d / features_of % columns.taps, i = d / features_of / columns.taps;
      const int64_t row = rows.first + window[0] * (rows.taps - 1 - i);
      const int64_t column = columns.first + window[1] * (columns.taps - 1 - j);
      const float* tap = weights + (row * size[2] + column) * channels * features;
      if (of.depthwise) {
        std::copy_n(tap + c, n, out);
      } else {
        for (int64_t e = 0; e < n; ++e) out[e] = tap[(c + e) * features + group * features_of + f];
      }
    };
    Convolve(pool, of, g.typed_data() + member * in[1] * of.image(), write, to, x_image, window[0] * x_row,
             window[1] * out[4]);
  }
  return ffi::Error::Success();
}

// ---------------------------------------------------------------------------------------------- gradient of the kernel

// Images and rows of their output that are processed at once.
struct Part {
  int64_t image, images, row, rows;
};

struct Numbers {
  const float* data;
  int64_t n;
};

// The maps that a part of the output reads.
Numbers SeenBy(const Geometry& of, const float* images, const Part& part) {
  const int64_t first = part.row * of.row_stride - of.top, row = of.width * of.pixel();
  const int64_t begin = std::clamp<int64_t>(first, 0, of.height);
  const int64_t end = std::clamp<int64_t>(first + of.rows(part.rows), begin, of.height);
  return {images + part.image * of.image() + begin * row, (part.images - 1) * of.image() + (end - begin) * row};
}

// Packs the output's gradient, `pixel` floats per pixel, into blocks of features: (block, pixel, feature), the last one
// padded with zeros.
const float* Blocks(const Geometry& of, const float* from, int64_t pixels, int64_t pixel, int64_t begin, int64_t end) {
  if (of.features == pixel && of.features == of.block(0)) return from;
  float* to = Scratch(gradient_memory, pixels * (RoundUp(end) - begin));
  for (int64_t p = 0; p < pixels; ++p, from += pixel) {
    for (int64_t f = begin; f < end; f += of.block(f)) {
      const int64_t block = of.block(f), filled = std::min(block, of.features - f);
      float* out = to + (f - begin) * pixels + p * block;
      std::memcpy(out, from + f, filled * sizeof(float));
      std::fill(out + filled, out + block, 0.0f);
    }
  }
  return to;
}

// Adds a piece's share of the kernel's gradient for the features from begin to end, and prefetches `next`, the numbers
// of the next piece.
void AddGradients(const Geometry& of, const Piece& piece, const Part& part, const float* blocks, int64_t begin,
                  int64_t end, const std::array<Numbers, 2>& next, float* sums) {
  const int64_t depth = of.depth(), width = RoundUp(of.features), pixels = part.images * part.rows * of.output_width;
  const int64_t most = of.gradient_rows(of.block(begin)), tiles = CeilDiv(depth, most);
  // Maps that several blocks of features use are packed: pixels with many channels fall into the same few cache sets.
  const bool packed = !of.depthwise && end - begin > of.block(begin);
  const int64_t together = std::clamp<int64_t>(kPackedFloats / (pixels * most), 1, tiles) * most;
  const int64_t calls = of.kernel_height * tiles * CeilDiv(end - begin, of.block(begin));
  const int64_t step = std::min<int64_t>(kLine, CeilDiv(next[0].n + next[1].n, calls * pixels));
  int64_t fetched = 0;
  for (int64_t i = 0; i < of.kernel_height; ++i) {
    // The output rows for which this kernel row meets the image, not its padding.
    const int64_t above = of.top - i - part.row * of.row_stride;
    const auto row_from = [&](int64_t y) { return std::min(part.rows, CeilDiv(std::max<int64_t>(y, 0), of.row_stride)); };
    const int64_t first = row_from(above), last = row_from(above + of.height);
    const int64_t seen = (last - first) * of.output_width;  // pixels per image
    for (int64_t d = 0; d < depth; d += most) {
      const int64_t tile = std::min(most, depth - d);
      const float* data = piece.data + (first * of.row_stride + i) * piece.row + (of.depthwise ? d * of.step() : d);
      Seen x = {data, piece.image, of.row_stride * piece.row, of.column_stride * of.step(), part.images, last - first,
                of.output_width};
      if (packed) {
        float* memory = Scratch(tile_memory, pixels * together);
        // All blocks but the last are wide.
        if (d % together == 0) Pack<kGradientRows<2, false>>(x, std::min(together, depth - d), memory);
        x = {memory + d % together * part.images * seen, seen * most, 0, most, part.images, 1, seen};
      }
      for (int64_t f = begin; f < end; f += of.block(f), fetched += step * pixels) {
        const float* ahead = fetched < next[0].n ? next[0].data + fetched : next[1].data + (fetched - next[0].n);
        const auto run = [&](auto gradients) {
          float* to = sums + (i * depth + d) * width + f;
          const float* g = blocks + (f - begin) * pixels + first * of.output_width * of.block(f);
          gradients(tile, x, of.step(), g, part.rows * of.output_width * of.block(f), to, width, ahead, step);
        };
        if (of.depthwise) {
          run([f](int64_t tile, Seen x, auto... a) { x.data += f, GradientsOf<1, true>(tile, x, a...); });
        } else if (of.block(f) == kWide) {
          run([](auto... a) { GradientsOf<2, false>(a...); });
        } else {
          run([](auto... a) { GradientsOf<1, false>(a...); });
        }
      }
    }
  }
}

ffi::Error Kernel(ffi::ThreadPool pool, Array x, Array g, Result kernel, Window window) {
  const auto in = x.dimensions(), out = g.dimensions(), size = kernel->dimensions();
  const Geometry narrow(in[1], in[2], in[3], window[6], in[4], size[1], size[2], window[0], window[1], window[2],
                        window[4], out[2], out[3], size[4]);
  const int64_t neighbours = narrow.neighbours();
  const Geometry of = narrow.joined(neighbours);
  const int64_t depth = of.depth(), width = RoundUp(of.features), floats = of.packed(), pixel = of.groups * of.features;
  const int64_t pixels = of.output_height * of.output_width;
  // Pieces are rows of an image, or whole images.
  const int64_t wanted = std::min(of.images * pixels / kTasks, kPieceFloats / (of.step() + of.features));
  const int64_t piece_pixels = std::clamp<int64_t>(wanted, kLeastPixels, kMostPixels);
  const int64_t piece_rows = std::clamp<int64_t>(piece_pixels / of.output_width, 1, of.output_height);
  const int64_t pieces_of_image = CeilDiv(of.output_height, piece_rows);
  const int64_t batches = CeilDiv(of.images, std::clamp<int64_t>(piece_pixels / pixels, 1, of.images));
  const auto part_of = [&](int64_t piece) {
    const int64_t batch = piece / pieces_of_image, row = piece % pieces_of_image * piece_rows;
    const int64_t image = Cut(of.images, batch, batches), images = Cut(of.images, batch + 1, batches) - image;
    return Part{image, images, row, std::min(piece_rows, of.output_height - row)};
  };
  // Each task sums over some of the pieces, for some of the features of a group.
  const int64_t fit = std::min(of.images * pixels / kPixelsPerPart, kMostSums / (of.groups * floats));
  const int64_t parts = std::clamp<int64_t>(std::min(batches * pieces_of_image, fit), 1, kTasks);
  const int64_t blocks = CeilDiv(width, of.block(0)), slices = std::min(blocks, CeilDiv(kTasks, parts * of.groups));
  const auto sums = std::unique_ptr<float[]>(new float[parts * of.groups * floats]);
  for (int64_t member = 0; member < in[0]; ++member) {
    const float* images = x.typed_data() + member * of.images * of.image();
    const float* gradients = g.typed_data() + member * of.images * pixels * pixel;
    ParallelFor(pool, parts * of.groups * slices, [&](int64_t task) {
      const int64_t slice = task % slices, group = task / slices % of.groups, part = task / slices / of.groups;
      const int64_t begin = Cut(blocks, slice, slices) * of.block(0);
      const int64_t end = std::min(of.features, Cut(blocks, slice + 1, slices) * of.block(0));
      float* sum = sums.get() + (part * of.groups + group) * floats;
      for (int64_t d = 0; d < of.kernel_height * depth; ++d) {
        std::fill(sum + d * width + begin, sum + d * width + RoundUp(end), 0.0f);
      }
      const int64_t last = Cut(batches * pieces_of_image, part + 1, parts);
      for (int64_t p = Cut(batches * pieces_of_image, part, parts); p < last; ++p) {
        const Part now = part_of(p), next = part_of(std::min(p + 1, last - 1));
        const Piece piece = Pad(of, images + now.image * of.image(), now.images, group, now.row, now.rows);
        const auto gradients_of = [&](const Part& part) {
          return Numbers{gradients + (part.image * pixels + part.row * of.output_width) * pixel,
                         part.images * part.rows * of.output_width * pixel};
        };
        const Numbers from = gradients_of(now);
        const float* in_blocks = Blocks(of, from.data + group * of.features, from.n / pixel, pixel, begin, end);
        AddGradients(of, piece, now, in_blocks, begin, end, {SeenBy(of, images, next), gradients_of(next)}, sum);
      }
    });
    float* result = kernel->typed_data() + member * narrow.kernel_height * narrow.depth() * out[4];
    const int64_t lines = narrow.kernel_height * narrow.depth(), pieces = CeilDiv(lines, 256);
    ParallelFor(pool, pieces, [&](int64_t piece) {
      for (int64_t line = Cut(lines, piece, pieces); line < Cut(lines, piece + 1, pieces); ++line) {
        const int64_t first = line / narrow.depth() * depth + line % narrow.depth();
        for (int64_t group = 0; group < of.groups; ++group) {
          float* to = result + line * out[4] + group * narrow.features;
          for (int64_t term = 0; term < parts * neighbours; ++term) {
            const int64_t neighbour = term % neighbours;
            const int64_t d = first + neighbour * narrow.column_stride * narrow.channels;
            const float* from = sums.get() + (term / neighbours * of.groups + group) * floats + d * width;
            from += neighbour * narrow.features;
            for (int64_t f = 0; f < narrow.features; ++f) to[f] = term == 0 ? from[f] : to[f] + from[f];
          }
        }
      }
    });
  }
  return ffi::Error::Success();
}

// --------------------------------------------------------------------------------------------------- mean and variance

constexpr int64_t kMomentFloats = 1 << 15;  // per piece, so that there are pieces for all threads
constexpr int64_t kMomentPieces = 64;       // maximum number
constexpr int64_t kLeastWidth = 256;        // floats that are added up side by side: sums of fewer wait for each other
constexpr int64_t kMostTerms = 512;         // of a sum in float32

// Mean of each channel over some rows, and the sum of squared deviations from it, in one pass: from the differences from
// the first row, because sums of squares of numbers that are far from 0 lose what distinguishes them.
void MomentsOf(const float* x, int64_t rows, int64_t channels, double* means, double* deviations) {
  const int64_t together = std::min(CeilDiv(kLeastWidth, channels), rows), width = together * channels;
  const auto memory = std::unique_ptr<float[]>(new float[3 * width]);
  float* __restrict origin = memory.get();
  float* __restrict sums = origin + width;
  float* __restrict squares = sums + width;
  for (int64_t row = 0; row < together; ++row) std::copy_n(x, channels, origin + row * channels);
  std::fill_n(means, channels, 0.0);
  std::fill_n(deviations, channels, 0.0);
  for (int64_t left = rows; left > 0;) {
    std::fill_n(sums, 2 * width, 0.0f);
    for (int64_t term = 0; term < kMostTerms && left > 0; ++term) {
      const int64_t now = std::min(left, together), n = now * channels;
      for (int64_t i = 0; i < n; ++i) {
        const float difference = x[i] - origin[i];
        sums[i] += difference;
        squares[i] += difference * difference;
      }
      x += n, left -= now;
    }
    for (int64_t i = 0; i < width; i += channels) {
      for (int64_t c = 0; c < channels; ++c) means[c] += sums[i + c], deviations[c] += squares[i + c];
    }
  }
  for (int64_t c = 0; c < channels; ++c) {
    deviations[c] -= means[c] * means[c] / rows;
    means[c] = origin[c] + means[c] / rows;
  }
}

// Of the members (…, rows, channels): results (…, channels).
ffi::Error Moments(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::Result<ffi::AnyBuffer> mean,
                   ffi::Result<ffi::AnyBuffer> variance) {
  const auto dims = x.dimensions();
  const int64_t channels = dims[dims.size() - 1], rows = dims[dims.size() - 2];
  const int64_t members = x.element_count() / (rows * channels);
  const int64_t pieces = std::clamp<int64_t>(rows * channels / kMomentFloats, 1, std::min(rows, kMomentPieces));
  const int64_t size = members * pieces * channels;
  const auto means = std::unique_ptr<double[]>(new double[2 * size]);
  const auto total = std::unique_ptr<double[]>(new double[2 * channels]);
  double *deviations = means.get() + size, *whole = total.get(), *squares = whole + channels;
  ParallelFor(pool, members * pieces, [&](int64_t task) {
    const int64_t first = Cut(rows, task % pieces, pieces), last = Cut(rows, task % pieces + 1, pieces);
    const float* data = x.typed_data<float>() + (task / pieces * rows + first) * channels;
    MomentsOf(data, last - first, channels, means.get() + task * channels, deviations + task * channels);
  });
  // Joins the pieces (Chan, Golub and LeVeque 1983, eq. 2.1).
  for (int64_t member = 0; member < members; ++member) {
    const auto each = [&](const auto& add) {
      for (int64_t piece = 0; piece < pieces; ++piece) {
        const double n = Cut(rows, piece + 1, pieces) - Cut(rows, piece, pieces);
        const int64_t from = (member * pieces + piece) * channels;
        for (int64_t c = 0; c < channels; ++c) add(c, n, means[from + c], deviations[from + c]);
      }
    };
    std::fill_n(whole, 2 * channels, 0.0);
    each([&](int64_t c, double n, double mean, double) { whole[c] += n / rows * mean; });
    each([&](int64_t c, double n, double mean, double deviation) {
      squares[c] += deviation + n * (mean - whole[c]) * (mean - whole[c]);
    });
    for (int64_t c = 0; c < channels; ++c) {
      mean->typed_data<float>()[member * channels + c] = whole[c];
      const double clipped = squares[c] < 0 ? 0 : squares[c];  // and NaN stays NaN
      variance->typed_data<float>()[member * channels + c] = clipped / rows;
    }
  }
  return ffi::Error::Success();
}

}  // namespace

#define DEFINE(name, function)                                            \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name, function,                           \
                                ffi::Ffi::Bind()                          \
                                    .Ctx<ffi::ThreadPool>()               \
                                    .Arg<Array>()                         \
                                    .Arg<Array>()                         \
                                    .Ret<Array>()                         \
                                    .Attr<Window>("window"))

DEFINE(convolution_output, Output);
DEFINE(convolution_input, Input);
DEFINE(convolution_kernel, Kernel);
XLA_FFI_DEFINE_HANDLER_SYMBOL(convolution_moments, Moments,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>());
