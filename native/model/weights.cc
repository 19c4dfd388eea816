#include "model/weights.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <numeric>
#include <set>
#include <utility>

#include "core/error.h"
#include "core/finite.h"
#include "core/float16.h"
#include "core/format.h"
#include "core/fragments.h"
#include "core/panels.h"
#include "core/quant.h"
#include "model/joined_tensors.h"
#include "model/source_file.h"

namespace hogwild {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors is little-endian and is read in place");

// Throws where the tensor's rows (a vector's elements) are not whole heads.
void check_interleaved(const TensorSource& source) {
  const auto [head_dim, rotary_dim] = source.interleaved;
  if (head_dim == 0) return;
  const std::int64_t n = source.rows == 1 ? source.cols : source.rows;
  if (head_dim > 0 && n % head_dim == 0 && rotary_dim > 0 && rotary_dim <= head_dim && rotary_dim % 2 == 0) return;
  throw Error(code::kInvalidModel, "tensor '" + source.name + "' of '" + source.path + "': " + std::to_string(n) +
                                       " rows are not heads of " + std::to_string(head_dim) + " with " +
                                       std::to_string(rotary_dim) + " interleaved");
}

// False where a finite value became infinite. Infinities and NaNs of the file are kept as they are.
bool write_from_f32(const float* from, std::int64_t n, Dtype dtype, std::byte* out) {
  if (dtype == Dtype::kF32) {
    std::memcpy(out, from, static_cast<std::size_t>(n) * sizeof(float));
    return true;
  }
  bool fits = true;
  auto* out16 = reinterpret_cast<std::uint16_t*>(out);
  for (std::int64_t i = 0; i < n; ++i) {
    const std::uint16_t rounded = dtype == Dtype::kF16 ? f32_to_f16(from[i]) : f32_to_bf16(from[i]);
    const float back = dtype == Dtype::kF16 ? f16_to_f32(rounded) : bf16_to_f32(rounded);
    fits &= !std::isinf(back) || std::isinf(from[i]);
    out16[i] = rounded;
  }
  return fits;
}

// `columns`: Matrix::columns of what `data` holds.
HostArray convert(const TensorSource& source, const std::byte* data, const std::int32_t* columns, Dtype to) {
  const std::int64_t to_bytes = row_bytes(format_of(to), source.cols);
  const Matrix matrix = {
      .data = data, .format = source.format, .rows = source.rows, .cols = source.cols, .columns = columns};
  HostArray converted = allocate_host(static_cast<std::size_t>(source.rows * to_bytes), source.name);
  std::vector<float> row(static_cast<std::size_t>(source.cols));
  for (std::int64_t r = 0; r < source.rows; ++r) {
    dequantise_matrix_row(matrix, source.interleaved.file_row(r), row.data());
    if (!write_from_f32(row.data(), source.cols, to, converted.get() + r * to_bytes)) {
      throw Error(code::kInvalidModel, "tensor '" + source.name + "' of '" + source.path +
                                           "' holds a value beyond the range of " + dtype_name(to));
    }
  }
  return converted;
}

template <typename T>
void gather_elements(const TensorSource& source, const std::byte* data, std::byte* to) {
  constexpr std::int64_t kTile = 64;  // both sides of a tile stay in the cache, whichever of them is read along
  for (std::int64_t row = 0; row < source.rows; row += kTile) {
    for (std::int64_t col = 0; col < source.cols; col += kTile) {
      for (std::int64_t r = row; r < std::min(row + kTile, source.rows); ++r) {
        for (std::int64_t c = col; c < std::min(col + kTile, source.cols); ++c) {
          const std::int64_t from = r * source.row_stride + c * source.col_stride;
          std::memcpy(to + (r * source.cols + c) * static_cast<std::int64_t>(sizeof(T)),
                      data + from * static_cast<std::int64_t>(sizeof(T)), sizeof(T));
        }
      }
    }
  }
}

// The rows of a strided tensor one after the other.
HostArray gather(const TensorSource& source, const std::byte* data) {
  const std::int64_t bytes = source.rows * row_bytes(source.format, source.cols);
  HostArray rows = allocate_host(static_cast<std::size_t>(bytes), source.name);
  if (dtype_size(dtype_of(source.format)) == sizeof(std::uint32_t)) {
    gather_elements<std::uint32_t>(source, data, rows.get());
  } else {
    gather_elements<std::uint16_t>(source, data, rows.get());
  }
  return rows;
}

// The matrix as it is in the file, with its rows in the engine's order and aligned.
HostArray copy_rows(const TensorSource& source, const std::byte* data) {
  const std::int64_t bytes = row_bytes(source.format, source.cols);
  HostArray copy = allocate_host(static_cast<std::size_t>(source.rows * bytes), source.name);
  for (std::int64_t r = 0; r < source.rows; ++r) {
    std::memcpy(copy.get() + r * bytes, data + source.interleaved.file_row(r) * bytes, static_cast<std::size_t>(bytes));
  }
  return copy;
}

void read_vector(const TensorSource& source, const std::byte* data, float* out) {
  dequantise_row(source.format, data, source.cols, out);
  if (source.interleaved.head_dim == 0) return;
  const std::vector<float> in_file(out, out + source.cols);
  for (std::int64_t i = 0; i < source.cols; ++i) out[i] = in_file[source.interleaved.file_row(i)];
}

// Vectors share one device buffer; each begins at a cache line.
constexpr std::size_t kVectorAlignment = kCacheLine / sizeof(float);

std::size_t padded_size(std::int64_t size) {
  return (static_cast<std::size_t>(size) + kVectorAlignment - 1) / kVectorAlignment * kVectorAlignment;
}

}  // namespace

struct Weights::State {
  struct Vector {
    const float* data = nullptr;
    std::int64_t size = 0;
  };

  std::vector<std::unique_ptr<SourceFile>> files;  // mapped, those that a matrix still points into
  std::vector<HostArray> host_arrays;              // copies that a matrix points into
  std::set<std::vector<std::int32_t>> columns;     // Matrix::columns; those that are equal are one
  WeightStorage device_matrices;
  Buffer device_vectors;
  std::map<std::string, Matrix> matrices;
  std::map<std::string, Vector> vectors;
  std::map<std::string, std::string> paths;  // where each tensor came from
};

Weights::Weights(Device& device, const std::vector<TensorSource>& sources, const WeightOptions& options,
                 const std::function<void(std::int64_t bytes)>& on_loaded)
    : state_(std::make_unique<State>()) {
  struct File {
    std::unique_ptr<SourceFile> file;
    bool in_use = false;
  };
  std::map<std::string, File> files;
  std::vector<float> vectors;
  std::map<std::string, std::size_t> vector_offsets;

  for (const TensorSource& source : sources) {
    if (has(source.name)) {
      throw Error(code::kInvalidModel,
                  "tensor '" + source.name + "' is given twice, the second time in '" + source.path + "'");
    }
    const auto open = [&](const std::string& path) -> File& {
      File& opened = files[path];
      if (opened.file == nullptr) opened.file = std::make_unique<SourceFile>(path, options.mapped);
      return opened;
    };
    auto& [file, in_use] = open(source.path);
    check_interleaved(source);
    HostArray copy;
    const std::byte* data = nullptr;
    const std::int32_t* columns = nullptr;
    std::size_t span = 0;
    if (is_joined(source)) {
      JoinedTensor joined =
          join_tensors(source, [&](const std::string& path) -> const SourceFile& { return *open(path).file; });
      copy = std::move(joined.rows);
      if (!joined.columns.empty()) columns = state_->columns.insert(std::move(joined.columns)).first->data();
    } else {
      span = size_inside(source, source.offset, format_info(source.format).block_bytes, *file);
      data = file->bytes_at(source.offset, span, source.name, copy);
      if (is_strided(source)) copy = gather(source, data);
    }
    if (copy != nullptr) data = copy.get();
    const std::int64_t stored_bytes = source.rows * row_bytes(source.format, source.cols);
    state_->paths[source.name] = source.path;

    if (source.rows == 1) {
      vector_offsets[source.name] = vectors.size();
      state_->vectors[source.name] = {nullptr, source.cols};
      vectors.resize(vectors.size() + padded_size(source.cols));
      read_vector(source, data, vectors.data() + vector_offsets[source.name]);
      on_loaded(stored_bytes);
      continue;
    }

    WeightSource host = {.data = data, .format = source.format, .rows = source.rows, .cols = source.cols};
    const bool repacked = !is_plain(source.format) && options.repack;
    const bool is_aligned =
        !is_plain(source.format) || reinterpret_cast<std::uintptr_t>(data) % dtype_size(dtype_of(source.format)) == 0;
    if (options.convert_to && format_of(*options.convert_to) != source.format) {
      copy = convert(source, data, columns, *options.convert_to);
      columns = nullptr;
      host.format = format_of(*options.convert_to);
    } else if (repacked) {
      host.interleaved = source.interleaved;
    } else if (!is_aligned || source.interleaved.head_dim != 0) {
      copy = copy_rows(source, data);
    }
    host.repack = options.repack;
    host.columns = columns;
    if (copy != nullptr) host.data = copy.get();

    Matrix uploaded;
    try {
      uploaded = device.upload_weight(host, state_->device_matrices);
    } catch (const Error& error) {
      throw Error(error.code(), "tensor '" + source.name + "' of '" + source.path + "': " + error.what());
    }
    const bool in_place = uploaded.data == host.data;
    if (copy == nullptr) {
      in_use |= in_place;
      if (!in_place) {
        device.synchronize();  // the device may still be reading the file
        file->let_go(source.offset, span);
      }
    } else if (in_place) {
      state_->host_arrays.push_back(std::move(copy));
    } else {
      device.synchronize();  // the device may still be reading the copy, which ends here
    }
    state_->matrices[source.name] = uploaded;
    on_loaded(stored_bytes);
  }

  if (!vectors.empty()) {
    state_->device_vectors = device.allocate(vectors.size() * sizeof(float), "norms and biases");
    device.upload(state_->device_vectors.data(), vectors.data(), vectors.size() * sizeof(float));
    for (auto& [name, vector] : state_->vectors) {
      vector.data = state_->device_vectors.as<float>() + vector_offsets[name];
    }
  }
  device.synchronize();  // before files that nothing points into are unmapped
  for (auto& [path, file] : files) {
    if (file.in_use) state_->files.push_back(std::move(file.file));
  }
}

Weights::~Weights() = default;

Matrix Weights::matrix(const std::string& name, std::int64_t rows, std::int64_t cols) const {
  const auto found = state_->matrices.find(name);
  if (found == state_->matrices.end()) {
    throw Error(code::kInvalidModel, "the model has no matrix '" + name + "' " + shape_text(rows, cols));
  }
  if (found->second.rows != rows || found->second.cols != cols) {
    throw Error(code::kInvalidModel, "tensor '" + name + "': expected shape " + shape_text(rows, cols) + ", found " +
                                         shape_text(found->second.rows, found->second.cols));
  }
  return found->second;
}

const float* Weights::vector(const std::string& name, std::int64_t size) const {
  const auto found = state_->vectors.find(name);
  if (found == state_->vectors.end()) {
    throw Error(code::kInvalidModel, "the model has no vector '" + name + "' [" + std::to_string(size) + "]");
  }
  if (found->second.size != size) {
    throw Error(code::kInvalidModel, "tensor '" + name + "': expected shape [" + std::to_string(size) + "], found [" +
                                         std::to_string(found->second.size) + "]");
  }
  return found->second.data;
}

bool Weights::has(const std::string& name) const {
  return state_->matrices.contains(name) || state_->vectors.contains(name);
}

void Weights::check_unchanged() const {
  for (const auto& file : state_->files) {
    if (file->unchanged()) continue;
    throw Error(code::kInvalidModel, "'" + file->path() +
                                         "' was changed after the model was loaded, which reads its weights in place: "
                                         "load the model again, or with mapped: false");
  }
}

std::string Weights::blame(Device& device, const std::string& what) const {
  constexpr std::int64_t kPiece = std::int64_t{1} << 18;  // elements
  std::vector<float> values;
  const auto is_damaged_vector = [&](const float* data, std::int64_t n) {
    values.resize(static_cast<std::size_t>(n));
    device.download(values.data(), data, values.size() * sizeof(float));
    return !all_finite(values);
  };
  // Embeddings are rows of a matrix of whatever format in f32.
  const auto is_damaged_matrix = [&](const Matrix& matrix) {
    const std::int64_t piece = std::clamp<std::int64_t>(kPiece / matrix.cols, 1, matrix.rows);
    const Buffer rows = device.allocate(static_cast<std::size_t>(piece * matrix.cols) * sizeof(float), "weights");
    std::vector<std::int32_t> indices;
    for (std::int64_t first = 0; first < matrix.rows; first += piece) {
      indices.resize(static_cast<std::size_t>(std::min(piece, matrix.rows - first)));
      std::iota(indices.begin(), indices.end(), static_cast<std::int32_t>(first));
      const auto step = device.upload(StepView{.plan = {}, .ropes = {}, .slots = {}, .tokens = indices});
      device.embedding(*step, {.rows = std::ssize(indices), .table = matrix, .scale = 1, .out = rows.as<float>()});
      if (is_damaged_vector(rows.as<float>(), std::ssize(indices) * matrix.cols)) return true;
    }
    return false;
  };
  const auto message = [&](const std::string& name) {
    return what + ": tensor '" + name + "' of '" + state_->paths.at(name) + "' holds NaN or infinity";
  };
  for (const auto& [name, vector] : state_->vectors) {
    if (is_damaged_vector(vector.data, vector.size)) return message(name);
  }
  for (const auto& [name, matrix] : state_->matrices) {
    if (is_damaged_matrix(matrix)) return message(name);
  }
  return what + ", though the weights are finite: they, or a number in its config, are too large";
}

std::vector<std::string> Weights::names() const {
  std::vector<std::string> names;
  for (const auto& [name, matrix] : state_->matrices) names.push_back(name);
  for (const auto& [name, vector] : state_->vectors) names.push_back(name);
  return names;
}

std::int64_t Weights::bytes() const {
  std::int64_t total = 0;
  for (const auto& [name, matrix] : state_->matrices) total += matrix_bytes(matrix);
  return total;
}

}  // namespace hogwild
