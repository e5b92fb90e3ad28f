// Convolutions of float32 maps on a CPU, for cnn_jax/ops/native.py: the output, the gradient of the input, the gradient
// of the kernel.
//
// All three are products of matrices without the matrices. In a padded image the numbers under a row of the kernel are
// contiguous, kw·C of them, and those of the next output begin sx·C further on. So an output row is
//   y[ox, :] = sum over kernel rows i, and d < kw·C, of row_i[ox·sx·C + d] · kernel[i, d, :]
// and the kernel's gradient the same sum over all ox in place of d. The innermost functions hold a tile of the results
// in registers. The gradient of the input is itself such a convolution, of the output's gradient with the kernel turned
// round; with strides, one for each place in the stride.
//
// Groups are convolutions side by side. With one channel each (depthwise) there is no sum over channels: then a vector
// holds neighbouring channels of the maps, and meets as many of the kernel, in place of one number and many features.
//
// Work is cut so that the numbers that are used again and again stay in the caches. Which parts it is cut into follows
// from the sizes alone, so the results are the same bits with any number of threads.
//
// Layouts: maps (members, images, rows, columns, channels), kernels (members, rows, columns, channels, features).
// Members are independent convolutions, as from jax.vmap.

#include <algorithm>
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

// Most rows of a tile that is V vectors wide: the tile, a row of it and one more vector fill the registers.
template <int V, bool Depthwise>
constexpr int kTileRows = Depthwise ? 8 : V == 1 ? (kManyRegisters ? 16 : 8) : (kManyRegisters ? 12 : 6);

constexpr int64_t kWide = 2 * kLanes;            // features of a block, but for the last one
constexpr int64_t kKernelFloats = 6 * 1024;      // of a kernel that are used together: half of a first-level cache
constexpr int64_t kLeastImageFloats = 16 * 1024;  // of a padded piece of an image: some of a second-level cache;
constexpr int64_t kMostImageFloats = 128 * 1024;  // more where the kernel is large, which each piece reads anew
constexpr int64_t kParts = 16;                   // of a batch, with sums of their own; also the least number of tasks
constexpr int64_t kPixelsPerPart = 1024;         // at least: adding up the sums of the parts must cost little
constexpr int64_t kMostSums = 16 * 1024 * 1024;  // floats

using Array = ffi::Buffer<ffi::F32, 5>;
using Result = ffi::ResultBuffer<ffi::F32, 5>;
using Window = ffi::Span<const int64_t>;  // strides of rows and columns, padding above, below, left, right; groups

// ------------------------------------------------------------------------------------------------- tiles in registers

Vector At(const float* x) { return *reinterpret_cast<const Vector*>(x); }

// V vectors from `features` numbers, and back. By way of other vectors: sums whose addresses are taken leave registers.
template <int V>
inline void Load(Vector* to, const float* from, int64_t features) {
  Vector line[V] = {};
  if (features == V * kLanes) {  // a number that the compiler knows
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
// kernel has V·kLanes columns; y has so many or, at the edge, `features`. Depthwise, x has columns, too.
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

// kernel[r, :] += sum over the pixels (i, j) of x[i·x_row + j·x_step + r·x_depth]·g[i, j, :], for r < R.
// g and kernel have V·kLanes columns, of `features` that lie side by side. Depthwise, x has columns, too.
template <int R, int V, bool Depthwise>
void Gradients(const float* x, int64_t x_row, int64_t x_step, int64_t x_depth, const float* g, int64_t rows,
               int64_t columns, float* kernel, int64_t features) {
  if constexpr (!Depthwise) x_depth = 1;
  Vector sums[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) sums[r][v] = At(kernel + r * features + v * kLanes);
  }
  for (int64_t i = 0; i < rows; ++i, x += x_row) {
    const float* pixel = x;
    for (int64_t j = 0; j < columns; ++j, pixel += x_step, g += features) {
      Vector k[V];
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) k[v] = At(g + v * kLanes);
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
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) *reinterpret_cast<Vector*>(kernel + r * features + v * kLanes) = sums[r][v];
  }
}

// Calls the tile of so many rows.
template <int V, bool Depthwise, int R = kTileRows<V, Depthwise>, typename... Arguments>
void ProductsOf(int64_t tile, Arguments... arguments) {
  if constexpr (R > 0) {
    if (tile == R) return Products<R, V, Depthwise>(arguments...);
    ProductsOf<V, Depthwise, R - 1>(tile, arguments...);
  }
}

template <int V, bool Depthwise, int R = kTileRows<V, Depthwise>, typename... Arguments>
void GradientsOf(int64_t tile, Arguments... arguments) {
  if constexpr (R > 0) {
    if (tile == R) return Gradients<R, V, Depthwise>(arguments...);
    GradientsOf<V, Depthwise, R - 1>(tile, arguments...);
  }
}

// ------------------------------------------------------------------------------------------------------------- cutting

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t RoundUp(int64_t n) { return CeilDiv(n, kLanes) * kLanes; }

// Where part `index` of `parts` nearly equal ones of n begins.
int64_t Cut(int64_t n, int64_t index, int64_t parts) { return n * index / parts; }

// Memory of this thread, kept for the next call.
float* Scratch(std::vector<float>& memory, int64_t n) {
  if (static_cast<int64_t>(memory.size()) < n) memory.resize(n);
  return memory.data();
}
thread_local std::vector<float> image_memory, gradient_memory;

// task(i) for all i < n, on this thread and on those of the pool that are free. The caller takes tasks, too, until none
// is left, and waits only for those that run: it cannot wait for a pool whose threads all wait.
void ParallelFor(ffi::ThreadPool& pool, int64_t n, const std::function<void(int64_t)>& task) {
  struct Shared {
    std::atomic<int64_t> next{0}, done{0};
    std::mutex mutex;
    std::condition_variable finished;
  };
  auto shared = std::make_shared<Shared>();  // a helper that comes too late still looks at `next`
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
  for (int i = 0; i < 200 && shared->done < n; ++i) std::this_thread::yield();  // shorter than to sleep and be woken
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->finished.wait(lock, [&] { return shared->done == n; });
}

// Maps, and a window that is moved over them. Of groups, channels and features are those of one. Depthwise, all channels
// are one group's: so many side by side as fill vectors, zeros behind them.
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

  int64_t pixel() const { return groups * channels; }                   // floats of the maps
  int64_t image() const { return height * width * pixel(); }            // floats of the maps
  int64_t step() const { return depthwise ? RoundUp(channels) : channels; }  // floats of a pixel that outputs see
  int64_t depth() const { return depthwise ? kernel_width : kernel_width * channels; }  // of a kernel row
  int64_t columns() const { return (output_width - 1) * column_stride + kernel_width; }  // that outputs see
  int64_t rows(int64_t outputs) const { return (outputs - 1) * row_stride + kernel_height; }  // that so many rows see
  bool in_place() const {  // whether outputs see the maps as they are
    return top == 0 && left == 0 && columns() <= width && rows(output_height) <= height && step() == pixel();
  }

  // Features of a block that begins at f, and most rows of its tiles.
  int64_t block(int64_t f) const { return features - f > kLanes && !depthwise ? kWide : kLanes; }
  int64_t tile_rows(int64_t block) const {
    return depthwise ? kTileRows<1, true> : block == kWide ? kTileRows<2, false> : kTileRows<1, false>;
  }
  int64_t packed() const { return kernel_height * depth() * RoundUp(features); }  // floats of a group's kernel

  // Output rows of a piece of an image.
  int64_t piece() const {
    const int64_t floats = std::clamp(packed(), kLeastImageFloats, kMostImageFloats);
    return std::clamp<int64_t>((floats / (columns() * step()) - kernel_height) / row_stride + 1, 1, output_height);
  }
};

// A piece of an image, with its padding: the numbers from its first, and those between its rows.
struct Piece {
  const float* data;
  int64_t row;
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

// What `outputs` rows of a group's output see, from row `first` of it on.
Piece Pad(const Geometry& of, const float* image, int64_t group, int64_t first, int64_t outputs) {
  if (of.in_place()) {
    return {image + first * of.row_stride * of.width * of.pixel(), of.width * of.pixel()};
  }
  const int64_t rows = of.rows(outputs), step = of.step(), row = of.columns() * step;
  const int64_t begin = std::clamp<int64_t>(of.left, 0, of.columns());
  const int64_t end = std::clamp<int64_t>(of.left + of.width, begin, of.columns());
  float* data = Scratch(image_memory, rows * row);
  float* out = data;
  for (int64_t i = 0; i < rows; ++i, out += row) {
    const int64_t y = first * of.row_stride + i - of.top;
    if (y < 0 || y >= of.height) {
      std::fill_n(out, row, 0.0f);
      continue;
    }
    const float* in = image + (y * of.width + begin - of.left) * of.pixel() + group * of.channels;
    std::fill_n(out, begin * step, 0.0f);
    CopyPixels(in, end - begin, of.pixel(), of.channels, out + begin * step, step);
    std::fill(out + end * step, out + row, 0.0f);
  }
  return {data, row};
}

// --------------------------------------------------------------------------------------------------------- convolution

// Convolves all images. `kernel` has for each group blocks of features, each (kernel_height, depth, block). Outputs lie
// y_image, y_row and y_step apart; all features are side by side.
void Convolve(ffi::ThreadPool& pool, const Geometry& of, const float* x, const float* kernel, float* y, int64_t y_image,
              int64_t y_row, int64_t y_step) {
  const int64_t depth = of.depth(), outputs = of.piece(), pieces = CeilDiv(of.output_height, outputs);
  const int64_t x_depth = of.step(), x_step = of.column_stride * x_depth;
  ParallelFor(pool, of.images * pieces * of.groups, [&](int64_t task) {
    const int64_t group = task % of.groups, image = task / of.groups / pieces;
    const int64_t first_row = task / of.groups % pieces * outputs;
    const int64_t rows = std::min(outputs, of.output_height - first_row);
    const Piece piece = Pad(of, x + image * of.image(), group, first_row, rows);
    const float* block = kernel + group * of.packed();
    for (int64_t f = 0; f < of.features;) {
      const int64_t width = of.block(f), filled = std::min(width, of.features - f);
      const int64_t tiles = CeilDiv(of.output_width, of.tile_rows(width));
      const int64_t together = std::clamp<int64_t>(kKernelFloats / (depth * width), 1, of.kernel_height);  // its rows
      const int64_t part = together > 1 ? depth : std::min(depth, kKernelFloats / width);
      for (int64_t i = 0; i < of.kernel_height; i += together) {
        for (int64_t d = 0; d < depth; d += part) {
          const float* weights = block + (i * depth + d) * width;
          const int64_t height = std::min(together, of.kernel_height - i), length = std::min(part, depth - d);
          const float* begin = piece.data + i * piece.row + (of.depthwise ? d * x_depth + f : d);
          for (int64_t row = 0; row < rows; ++row) {
            for (int64_t t = 0; t < tiles; ++t) {
              const int64_t column = Cut(of.output_width, t, tiles), tile = Cut(of.output_width, t + 1, tiles) - column;
              const float* in = begin + row * of.row_stride * piece.row + column * x_step;
              float* out = y + image * y_image + (first_row + row) * y_row + column * y_step + group * of.features + f;
              const bool first = i == 0 && d == 0;
              const auto run = [&](auto products) {
                products(tile, in, piece.row, x_step, x_depth, weights, height, length, out, y_step, filled, first);
              };
              if (of.depthwise) {
                run([](auto... a) { ProductsOf<1, true>(a...); });
              } else if (width == kWide) {
                run([](auto... a) { ProductsOf<2, false>(a...); });
              } else {
                run([](auto... a) { ProductsOf<1, false>(a...); });
              }
            }
          }
        }
      }
      block += of.kernel_height * depth * width;
      f += filled;
    }
  });
}

// A kernel's blocks for Convolve: write(group, f, n, d, out) writes feature f and the n - 1 behind it, at depth d.
template <typename Write>
std::unique_ptr<float[]> Pack(ffi::ThreadPool& pool, const Geometry& of, const Write& write) {
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

ffi::Error Output(ffi::ThreadPool pool, Array x, Array kernel, Result y, Window window) {
  const auto in = x.dimensions(), size = kernel.dimensions(), out = y->dimensions();
  const Geometry of(in[1], in[2], in[3], window[6], in[4], size[1], size[2], window[0], window[1], window[2], window[4],
                    out[2], out[3], size[4]);
  const int64_t floats = size[1] * size[2] * size[3] * size[4], y_row = out[3] * out[4], y_image = out[2] * y_row;
  for (int64_t member = 0; member < in[0]; ++member) {
    const float* weights = kernel.typed_data() + member * floats;
    const auto packed = Pack(pool, of, [&](int64_t group, int64_t f, int64_t n, int64_t d, float* to) {
      std::copy_n(weights + d * out[4] + group * of.features + f, n, to);
    });
    Convolve(pool, of, x.typed_data() + member * of.images * of.image(), packed.get(),
             y->typed_data() + member * of.images * y_image, y_image, y_row, out[4]);
  }
  return ffi::Error::Success();
}

// Input row q·stride + place sees the kernel's rows first, first + stride, …: a convolution of stride 1, whose output 0
// begins `padding` rows before the first row of the gradient.
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
    if (rows.taps == 0 || columns.taps == 0) {  // no output sees them
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
    // Depth d is tap (i, j) of the turned kernel and a feature of the group; what lies side by side are channels.
    const int64_t features_of = of.depthwise ? 1 : of.channels;
    const auto packed = Pack(pool, of, [&](int64_t group, int64_t c, int64_t n, int64_t d, float* out) {
      const int64_t f = d % features_of, j = d / features_of % columns.taps, i = d / features_of / columns.taps;
      const int64_t row = rows.first + window[0] * (rows.taps - 1 - i);
      const int64_t column = columns.first + window[1] * (columns.taps - 1 - j);
      const float* tap = weights + (row * size[2] + column) * channels * features;
      if (of.depthwise) {
        std::copy_n(tap + c, n, out);
      } else {
        for (int64_t e = 0; e < n; ++e) out[e] = tap[(c + e) * features + group * features_of + f];
      }
    });
    Convolve(pool, of, g.typed_data() + member * in[1] * of.image(), packed.get(), to, x_image, window[0] * x_row,
             window[1] * out[4]);
  }
  return ffi::Error::Success();
}

// ---------------------------------------------------------------------------------------------- gradient of the kernel

ffi::Error Kernel(ffi::ThreadPool pool, Array x, Array g, Result kernel, Window window) {
  const auto in = x.dimensions(), out = g.dimensions(), size = kernel->dimensions();
  const Geometry of(in[1], in[2], in[3], window[6], in[4], size[1], size[2], window[0], window[1], window[2], window[4],
                    out[2], out[3], size[4]);
  const int64_t depth = of.depth(), width = RoundUp(of.features), floats = of.packed();
  const int64_t pixels = of.output_height * of.output_width, outputs = of.piece();
  // Each task sums over a part of the images, for some of the features of a group.
  const int64_t fit = kMostSums / (of.groups * floats);
  const int64_t most = std::min({kParts, of.images, of.images * pixels / kPixelsPerPart, fit});
  const int64_t parts = std::max<int64_t>(1, most), blocks = CeilDiv(width, of.block(0));
  const int64_t slices = std::min(blocks, CeilDiv(kParts, parts * of.groups));
  const auto sums = std::unique_ptr<float[]>(new float[parts * of.groups * floats]);
  for (int64_t member = 0; member < in[0]; ++member) {
    const float* images = x.typed_data() + member * of.images * of.image();
    const float* gradients = g.typed_data() + member * of.images * pixels * out[4];
    ParallelFor(pool, parts * of.groups * slices, [&](int64_t task) {
      const int64_t slice = task % slices, group = task / slices % of.groups, part = task / slices / of.groups;
      const int64_t begin = Cut(blocks, slice, slices) * of.block(0);
      const int64_t end = std::min(width, Cut(blocks, slice + 1, slices) * of.block(0));
      float* sum = sums.get() + (part * of.groups + group) * floats;
      for (int64_t d = 0; d < of.kernel_height * depth; ++d) {
        std::fill(sum + d * width + begin, sum + d * width + end, 0.0f);
      }
      for (int64_t image = Cut(of.images, part, parts); image < Cut(of.images, part + 1, parts); ++image) {
        for (int64_t row = 0; row < of.output_height; row += outputs) {
          const int64_t rows = std::min(outputs, of.output_height - row);
          const Piece piece = Pad(of, images + image * of.image(), group, row, rows);
          const float* from = gradients + (image * pixels + row * of.output_width) * out[4] + group * of.features;
          if (of.groups > 1 || out[4] != width) {  // zeros behind the features, so that they are whole vectors
            float* wide = Scratch(gradient_memory, rows * of.output_width * width);
            CopyPixels(from, rows * of.output_width, out[4], of.features, wide, width);
            from = wide;
          }
          for (int64_t f = begin; f < end; f += of.block(f)) {
            const int64_t tiles = CeilDiv(depth, of.tile_rows(of.block(f)));
            for (int64_t t = 0; t < of.kernel_height * tiles; ++t) {
              const int64_t i = t / tiles, d = Cut(depth, t % tiles, tiles);
              const int64_t tile = Cut(depth, t % tiles + 1, tiles) - d;
              const float* see = piece.data + i * piece.row + (of.depthwise ? d * of.step() + f : d);
              float* to = sum + (i * depth + d) * width + f;
              const auto run = [&](auto gradients) {
                gradients(tile, see, of.row_stride * piece.row, of.column_stride * of.step(), of.step(), from + f, rows,
                          of.output_width, to, width);
              };
              if (of.depthwise) {
                run([](auto... a) { GradientsOf<1, true>(a...); });
              } else if (of.block(f) == kWide) {
                run([](auto... a) { GradientsOf<2, false>(a...); });
              } else {
                run([](auto... a) { GradientsOf<1, false>(a...); });
              }
            }
          }
        }
      }
    });
    float* result = kernel->typed_data() + member * of.kernel_height * depth * out[4];
    const int64_t lines = of.kernel_height * depth, pieces = CeilDiv(lines, 256);
    ParallelFor(pool, pieces, [&](int64_t piece) {
      for (int64_t d = Cut(lines, piece, pieces); d < Cut(lines, piece + 1, pieces); ++d) {
        for (int64_t group = 0; group < of.groups; ++group) {
          float* to = result + d * out[4] + group * of.features;
          const float* from = sums.get() + group * floats + d * width;
          std::copy_n(from, of.features, to);
          for (int64_t part = 1; part < parts; ++part) {
            from += of.groups * floats;
            for (int64_t f = 0; f < of.features; ++f) to[f] += from[f];
          }
        }
      }
    });
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
