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
template <int V>
constexpr int kTileRows = V == 1 ? (kManyRegisters ? 16 : 8) : (kManyRegisters ? 12 : 6);

constexpr int64_t kWide = 2 * kLanes;            // features of a block, but for the last one
constexpr int64_t kKernelFloats = 6 * 1024;      // of a kernel that are used together: half of a first-level cache
constexpr int64_t kLeastImageFloats = 16 * 1024;  // of a padded piece of an image: some of a second-level cache;
constexpr int64_t kMostImageFloats = 128 * 1024;  // more where the kernel is large, which each piece reads anew
constexpr int64_t kParts = 16;                   // of a batch, with sums of their own; also the least number of tasks
constexpr int64_t kPixelsPerPart = 1024;         // at least: adding up the sums of the parts must cost little
constexpr int64_t kMostSums = 16 * 1024 * 1024;  // floats

using Array = ffi::Buffer<ffi::F32, 5>;
using Result = ffi::ResultBuffer<ffi::F32, 5>;
using Window = ffi::Span<const int64_t>;  // strides of rows and columns, padding above, below, left, right

// ------------------------------------------------------------------------------------------------- tiles in registers

// V vectors from `features` numbers, and back. By way of other vectors: sums whose addresses are taken leave registers.
template <int V>
inline void Load(Vector* to, const float* from, int64_t features) {
  Vector line[V] = {};
  std::memcpy(line, from, (features == V * kLanes ? V * kLanes : features) * sizeof(float));
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

// y[r, :] = (first ? 0 : y[r, :]) + sum over i and d of x[i·x_row + r·x_step + d]·kernel[i, d, :], for r < R.
// kernel has V·kLanes columns; y has so many or, at the edge, `features`.
template <int R, int V>
void Products(const float* x, int64_t x_row, int64_t x_step, const float* kernel, int64_t rows, int64_t depth, float* y,
              int64_t y_step, int64_t features, bool first) {
  Vector sums[R][V] = {};
  if (!first) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) Load<V>(sums[r], y + r * y_step, features);
  }
  for (int64_t i = 0; i < rows; ++i, x += x_row) {
    for (int64_t d = 0; d < depth; ++d, kernel += V * kLanes) {
      Vector k[V];
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) k[v] = *reinterpret_cast<const Vector*>(kernel + v * kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) sums[r][v] += x[r * x_step + d] * k[v];
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) Store<V>(sums[r], y + r * y_step, features);
}

// kernel[r, :] += sum over the pixels (i, j) of x[i·x_row + j·x_step + r]·g[i, j, :], for r < R.
// g and kernel have V·kLanes columns, of `features` that lie side by side.
template <int R, int V>
void Gradients(const float* x, int64_t x_row, int64_t x_step, const float* g, int64_t rows, int64_t columns,
               float* kernel, int64_t features) {
  Vector sums[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) sums[r][v] = *reinterpret_cast<const Vector*>(kernel + r * features + v * kLanes);
  }
  for (int64_t i = 0; i < rows; ++i, x += x_row) {
    const float* pixel = x;
    for (int64_t j = 0; j < columns; ++j, pixel += x_step, g += features) {
      Vector k[V];
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) k[v] = *reinterpret_cast<const Vector*>(g + v * kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) sums[r][v] += pixel[r] * k[v];
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
template <int V, int R = kTileRows<V>, typename... Arguments>
void ProductsOf(int64_t tile, Arguments... arguments) {
  if constexpr (R > 0) {
    if (tile == R) return Products<R, V>(arguments...);
    ProductsOf<V, R - 1>(tile, arguments...);
  }
}

template <int V, int R = kTileRows<V>, typename... Arguments>
void GradientsOf(int64_t tile, Arguments... arguments) {
  if constexpr (R > 0) {
    if (tile == R) return Gradients<R, V>(arguments...);
    GradientsOf<V, R - 1>(tile, arguments...);
  }
}

// ------------------------------------------------------------------------------------------------------------- cutting

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Rows and vectors of the tiles for a block of features that begins where `left` of them are left.
int64_t BlockWidth(int64_t left) { return left > kLanes ? kWide : kLanes; }
int64_t MostRows(int64_t width) { return width == kWide ? kTileRows<2> : kTileRows<1>; }

// Where part `index` of `parts` nearly equal ones of n begins.
int64_t Cut(int64_t n, int64_t index, int64_t parts) { return n * index / parts; }

std::unique_ptr<float[]> Floats(int64_t n) { return std::unique_ptr<float[]>(new float[n]); }

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

// Maps, and a window that is moved over them; for the pieces of images that the tiles see.
struct Geometry {
  int64_t images, height, width, channels;
  int64_t kernel_height, kernel_width, row_stride, column_stride, top, left;
  int64_t output_height, output_width;

  int64_t depth() const { return kernel_width * channels; }                                    // of a kernel row
  int64_t columns() const { return (output_width - 1) * column_stride + kernel_width; }        // that outputs see
  int64_t rows(int64_t outputs) const { return (outputs - 1) * row_stride + kernel_height; }  // that so many rows see
  bool padded() const { return top != 0 || left != 0 || columns() > width || rows(output_height) > height; }
  int64_t image_floats() const { return height * width * channels; }

  // Output rows of a piece of an image.
  int64_t piece(int64_t kernel_floats) const {
    const int64_t floats = std::clamp(kernel_floats, kLeastImageFloats, kMostImageFloats);
    return std::clamp<int64_t>((floats / (columns() * channels) - kernel_height) / row_stride + 1, 1, output_height);
  }
};

// A piece of an image, with its padding: the numbers from its first, and those between its rows.
struct Piece {
  const float* data;
  int64_t row;
};

// What `outputs` rows of the output see, from row `first` of it on.
Piece Pad(const Geometry& of, const float* image, int64_t first, int64_t outputs) {
  if (!of.padded()) {
    return {image + first * of.row_stride * of.width * of.channels, of.width * of.channels};
  }
  const int64_t rows = of.rows(outputs), row = of.columns() * of.channels;
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
    const float* in = image + (y * of.width + begin - of.left) * of.channels;
    std::fill_n(out, begin * of.channels, 0.0f);
    std::copy_n(in, (end - begin) * of.channels, out + begin * of.channels);
    std::fill_n(out + end * of.channels, row - end * of.channels, 0.0f);
  }
  return {data, row};
}

// --------------------------------------------------------------------------------------------------------- convolution

// Convolves all images. `kernel` has blocks of BlockWidth features, each (kernel_height, depth, width). Outputs lie
// y_image, y_row and y_step apart; `features` of them are side by side.
void Convolve(ffi::ThreadPool& pool, const Geometry& of, const float* x, const float* kernel, int64_t features,
              float* y, int64_t y_image, int64_t y_row, int64_t y_step) {
  const int64_t depth = of.depth(), outputs = of.piece(of.kernel_height * depth * features);
  const int64_t pieces = CeilDiv(of.output_height, outputs);
  ParallelFor(pool, of.images * pieces, [&](int64_t task) {
    const int64_t image = task / pieces, first_row = task % pieces * outputs;
    const int64_t rows = std::min(outputs, of.output_height - first_row);
    const Piece piece = Pad(of, x + image * of.image_floats(), first_row, rows);
    const float* block = kernel;
    for (int64_t f = 0; f < features;) {
      const int64_t width = BlockWidth(features - f), filled = std::min(width, features - f);
      const int64_t tiles = CeilDiv(of.output_width, MostRows(width));
      const int64_t together = std::clamp<int64_t>(kKernelFloats / (depth * width), 1, of.kernel_height);  // its rows
      const int64_t part = together > 1 ? depth : std::min(depth, kKernelFloats / width);
      for (int64_t i = 0; i < of.kernel_height; i += together) {
        for (int64_t d = 0; d < depth; d += part) {
          const float* weights = block + (i * depth + d) * width;
          const int64_t height = std::min(together, of.kernel_height - i), length = std::min(part, depth - d);
          for (int64_t row = 0; row < rows; ++row) {
            for (int64_t t = 0; t < tiles; ++t) {
              const int64_t column = Cut(of.output_width, t, tiles), tile = Cut(of.output_width, t + 1, tiles) - column;
              const int64_t step = of.column_stride * of.channels;
              const float* in = piece.data + (row * of.row_stride + i) * piece.row + column * step + d;
              float* out = y + image * y_image + (first_row + row) * y_row + column * y_step + f;
              const bool first = i == 0 && d == 0;
              if (width == kWide) {
                ProductsOf<2>(tile, in, piece.row, step, weights, height, length, out, y_step, filled, first);
              } else {
                ProductsOf<1>(tile, in, piece.row, step, weights, height, length, out, y_step, filled, first);
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

int64_t PackedFloats(int64_t depth, int64_t features) { return depth * CeilDiv(features, kLanes) * kLanes; }

// A kernel's blocks for Convolve: write(f, n, d, out) writes feature f and the n - 1 behind it, at depth d.
template <typename Write>
void Pack(ffi::ThreadPool& pool, int64_t depth, int64_t features, float* packed, const Write& write) {
  const int64_t blocks = CeilDiv(features, kWide), pieces = CeilDiv(depth, 256);
  ParallelFor(pool, blocks * pieces, [&](int64_t task) {
    const int64_t f = task / pieces * kWide, piece = task % pieces;
    const int64_t width = BlockWidth(features - f), filled = std::min(width, features - f);
    for (int64_t d = Cut(depth, piece, pieces); d < Cut(depth, piece + 1, pieces); ++d) {
      float* out = packed + f * depth + d * width;
      write(f, filled, d, out);
      std::fill(out + filled, out + width, 0.0f);
    }
  });
}

ffi::Error Output(ffi::ThreadPool pool, Array x, Array kernel, Result y, Window window) {
  const auto in = x.dimensions(), size = kernel.dimensions(), out = y->dimensions();
  const Geometry of{in[1],     in[2],     in[3],     in[4],     size[1], size[2],
                    window[0], window[1], window[2], window[4], out[2],  out[3]};
  const int64_t depth = of.kernel_height * of.depth(), features = size[4];
  const auto packed = Floats(PackedFloats(depth, features));
  for (int64_t member = 0; member < in[0]; ++member) {
    const float* weights = kernel.typed_data() + member * depth * features;
    Pack(pool, depth, features, packed.get(), [&](int64_t f, int64_t n, int64_t d, float* to) {
      std::copy_n(weights + d * features + f, n, to);
    });
    const int64_t y_row = out[3] * features, y_image = out[2] * y_row;
    Convolve(pool, of, x.typed_data() + member * of.images * of.image_floats(), packed.get(), features,
             y->typed_data() + member * of.images * y_image, y_image, y_row, features);
  }
  return ffi::Error::Success();
}

// Input row q·stride + place sees the kernel's rows first, first + stride, …: a convolution of stride 1, whose output 0
// begins `padding` rows before the first row of the gradient.
struct Phase {
  int64_t outputs, first, taps, padding;

  Phase(int64_t place, int64_t stride, int64_t before, int64_t kernel, int64_t size) {
    outputs = CeilDiv(size - place, stride);
    first = (place + before) % stride;
    taps = first < kernel ? CeilDiv(kernel - first, stride) : 0;
    padding = taps - 1 - (place + before - first) / stride;
  }
};

ffi::Error Input(ffi::ThreadPool pool, Array g, Array kernel, Result x, Window window) {
  const auto in = g.dimensions(), size = kernel.dimensions(), out = x->dimensions();
  const int64_t channels = size[3], features = size[4], x_row = out[3] * channels, x_image = out[2] * x_row;
  const auto packed = Floats(PackedFloats(size[1] * size[2] * features, channels));
  for (int64_t task = 0; task < in[0] * window[0] * window[1]; ++task) {
    const int64_t member = task / (window[0] * window[1]), y = task / window[1] % window[0], x0 = task % window[1];
    const Phase rows(y, window[0], window[2], size[1], out[2]), columns(x0, window[1], window[4], size[2], out[3]);
    if (rows.outputs <= 0 || columns.outputs <= 0) continue;
    float* to = x->typed_data() + member * out[1] * x_image + y * x_row + x0 * channels;
    if (rows.taps == 0 || columns.taps == 0) {  // no output sees them
      ParallelFor(pool, out[1], [&](int64_t image) {
        for (int64_t i = 0; i < rows.outputs * columns.outputs; ++i) {
          const int64_t row = i / columns.outputs * window[0], column = i % columns.outputs * window[1];
          std::fill_n(to + image * x_image + row * x_row + column * channels, channels, 0.0f);
        }
      });
      continue;
    }
    const Geometry of{in[1], in[2], in[3],        features,        rows.taps,    columns.taps,
                      1,     1,     rows.padding, columns.padding, rows.outputs, columns.outputs};
    const float* weights = kernel.typed_data() + member * size[1] * size[2] * channels * features;
    // Depth d is tap (i, j) of the turned kernel and feature f; what lies side by side are channels.
    Pack(pool, rows.taps * columns.taps * features, channels, packed.get(),
         [&](int64_t c, int64_t n, int64_t d, float* out) {
           const int64_t f = d % features, j = d / features % columns.taps, i = d / features / columns.taps;
           const int64_t row = rows.first + window[0] * (rows.taps - 1 - i);
           const int64_t column = columns.first + window[1] * (columns.taps - 1 - j);
           const float* from = weights + ((row * size[2] + column) * channels + c) * features + f;
           for (int64_t e = 0; e < n; ++e) out[e] = from[e * features];
         });
    Convolve(pool, of, g.typed_data() + member * in[1] * of.image_floats(), packed.get(), channels, to, x_image,
             window[0] * x_row, window[1] * channels);
  }
  return ffi::Error::Success();
}

// ---------------------------------------------------------------------------------------------- gradient of the kernel

// The output's gradient with zeros behind the features, so that they are whole vectors.
const float* Widen(const float* g, int64_t pixels, int64_t features, int64_t width) {
  if (features == width) return g;
  float* out = Scratch(gradient_memory, pixels * width);
  for (int64_t p = 0; p < pixels; ++p) {
    std::copy_n(g + p * features, features, out + p * width);
    std::fill(out + p * width + features, out + (p + 1) * width, 0.0f);
  }
  return out;
}

ffi::Error Kernel(ffi::ThreadPool pool, Array x, Array g, Result kernel, Window window) {
  const auto in = x.dimensions(), out = g.dimensions(), size = kernel->dimensions();
  const Geometry of{in[1],     in[2],     in[3],     in[4],     size[1], size[2],
                    window[0], window[1], window[2], window[4], out[2],  out[3]};
  const int64_t features = size[4], width = CeilDiv(features, kLanes) * kLanes, depth = of.depth();
  const int64_t floats = of.kernel_height * depth * width, pixels = of.output_height * of.output_width;
  // Each task sums over a part of the images, for some of the features.
  const int64_t most = std::min({kParts, of.images, of.images * pixels / kPixelsPerPart, kMostSums / floats});
  const int64_t parts = std::max<int64_t>(1, most), blocks = CeilDiv(width, kWide);
  const int64_t slices = std::min(blocks, CeilDiv(kParts, parts)), outputs = of.piece(floats);
  const auto sums = Floats(parts * floats);
  for (int64_t member = 0; member < in[0]; ++member) {
    const float* images = x.typed_data() + member * of.images * of.image_floats();
    const float* gradients = g.typed_data() + member * of.images * pixels * features;
    ParallelFor(pool, parts * slices, [&](int64_t task) {
      const int64_t part = task / slices, first = Cut(blocks, task % slices, slices) * kWide;
      const int64_t last = std::min(width, Cut(blocks, task % slices + 1, slices) * kWide);
      float* sum = sums.get() + part * floats;
      for (int64_t d = 0; d < of.kernel_height * depth; ++d) std::fill(sum + d * width + first, sum + d * width + last, 0.0f);
      for (int64_t image = Cut(of.images, part, parts); image < Cut(of.images, part + 1, parts); ++image) {
        for (int64_t row = 0; row < of.output_height; row += outputs) {
          const int64_t rows = std::min(outputs, of.output_height - row);
          const Piece piece = Pad(of, images + image * of.image_floats(), row, rows);
          const float* from = gradients + (image * pixels + row * of.output_width) * features;
          const float* wide = Widen(from, rows * of.output_width, features, width);
          for (int64_t f = first; f < last; f += BlockWidth(width - f)) {
            const bool two = BlockWidth(width - f) == kWide;
            const int64_t tiles = CeilDiv(depth, MostRows(BlockWidth(width - f)));
            for (int64_t t = 0; t < of.kernel_height * tiles; ++t) {
              const int64_t i = t / tiles, d = Cut(depth, t % tiles, tiles), tile = Cut(depth, t % tiles + 1, tiles) - d;
              const float* see = piece.data + i * piece.row + d;
              const int64_t x_row = of.row_stride * piece.row, x_step = of.column_stride * of.channels;
              float* to = sum + (i * depth + d) * width + f;
              if (two) {
                GradientsOf<2>(tile, see, x_row, x_step, wide + f, rows, of.output_width, to, width);
              } else {
                GradientsOf<1>(tile, see, x_row, x_step, wide + f, rows, of.output_width, to, width);
              }
            }
          }
        }
      }
    });
    float* result = kernel->typed_data() + member * of.kernel_height * depth * features;
    const int64_t lines = of.kernel_height * depth, pieces = CeilDiv(lines, 256);
    ParallelFor(pool, pieces, [&](int64_t piece) {
      for (int64_t d = Cut(lines, piece, pieces); d < Cut(lines, piece + 1, pieces); ++d) {
        float* to = result + d * features;
        std::copy_n(sums.get() + d * width, features, to);
        for (int64_t part = 1; part < parts; ++part) {
          const float* more = sums.get() + part * floats + d * width;
          for (int64_t f = 0; f < features; ++f) to[f] += more[f];
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
