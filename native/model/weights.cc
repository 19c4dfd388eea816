#include "model/weights.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <new>
#include <numeric>
#include <system_error>
#include <utility>

#include "core/error.h"
#include "core/finite.h"
#include "core/float16.h"
#include "core/format.h"
#include "core/panels.h"
#include "core/quant.h"

namespace hogwild {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors is little-endian and is read in place");

constexpr std::size_t kCacheLine = 64;

std::string system_message(int error) { return std::generic_category().message(error); }

// A file that tensors are read from, mapped read-only or read on demand.
class SourceFile {
 public:
  SourceFile(const std::string& path, bool mapped) : path_(path) {
    // Without O_NONBLOCK a FIFO waits for somebody to write. To regular files it means nothing.
    file_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file_ < 0) throw Error(code::kInvalidModel, "cannot open '" + path + "': " + system_message(errno));
    int error = ::fstat(file_, &status_) == 0 ? 0 : errno;
    const bool regular = error == 0 && S_ISREG(status_.st_mode);
    if (regular && mapped && status_.st_size > 0) {  // an empty mapping is an error to mmap
      data_ = ::mmap(nullptr, size(), PROT_READ, MAP_PRIVATE, file_, 0);
      if (data_ == MAP_FAILED) {
        error = errno;
        data_ = nullptr;
      }
    }
    if (error != 0 || !regular) ::close(file_);
    if (error != 0) {
      throw Error(error == ENOMEM ? code::kOutOfMemory : code::kInvalidModel,
                  "cannot map '" + path + "': " + system_message(error));
    }
    if (!regular) throw Error(code::kInvalidModel, "'" + path + "' is not a regular file");
    // All of it will be read: let the system start now. Advice only, so a failure changes nothing.
    if (data_ != nullptr) ::madvise(data_, size(), MADV_WILLNEED);
  }
  ~SourceFile() {
    if (data_ != nullptr) ::munmap(data_, size());
    ::close(file_);
  }
  SourceFile(const SourceFile&) = delete;
  SourceFile& operator=(const SourceFile&) = delete;

  const std::string& path() const { return path_; }
  std::uint64_t size() const { return static_cast<std::uint64_t>(status_.st_size); }
  const std::byte* mapping() const { return static_cast<const std::byte*>(data_); }  // null where it is not mapped

  // The pages of [offset, offset + bytes) are not needed any more: they leave this process, and come back where they
  // are read after all.
  void let_go(std::uint64_t offset, std::size_t bytes) const {
    if (data_ == nullptr) return;
    const auto page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
    const std::uint64_t begin = (offset + page - 1) / page * page, end = (offset + bytes) / page * page;
    if (begin < end) ::madvise(static_cast<std::byte*>(data_) + begin, end - begin, MADV_DONTNEED);
  }

  // Reads [offset, offset + bytes), which lies inside the file.
  void read(std::uint64_t offset, std::size_t bytes, std::byte* to) const {
    while (bytes > 0) {
      constexpr std::size_t kMaxRead = std::size_t{1} << 30;
      const ssize_t n = ::pread(file_, to, std::min(bytes, kMaxRead), static_cast<off_t>(offset));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) throw Error(code::kInvalidModel, "cannot read '" + path_ + "': " + system_message(errno));
      if (n == 0) throw Error(code::kInvalidModel, "'" + path_ + "' became shorter while it was read");
      to += n;
      offset += static_cast<std::uint64_t>(n);
      bytes -= static_cast<std::size_t>(n);
    }
  }

  // Whether the file has the size and the time of its last change that it had when it was opened.
  bool unchanged() const {
    struct stat now = {};
    return ::fstat(file_, &now) == 0 && now.st_size == status_.st_size &&
           now.st_mtim.tv_sec == status_.st_mtim.tv_sec && now.st_mtim.tv_nsec == status_.st_mtim.tv_nsec;
  }

 private:
  std::string path_;
  int file_ = -1;
  struct stat status_ = {};
  void* data_ = nullptr;
};

// Host memory for weights that do not stay in their file, aligned to cache lines.
struct AlignedDelete {
  void operator()(std::byte* data) const { ::operator delete(data, std::align_val_t(kCacheLine)); }
};
using HostArray = std::unique_ptr<std::byte, AlignedDelete>;

HostArray allocate_host(std::size_t bytes, const std::string& name) {
  void* data = ::operator new(bytes, std::align_val_t(kCacheLine), std::nothrow);
  if (data == nullptr) {
    throw Error(code::kOutOfMemory, "no memory for tensor '" + name + "' (" + std::to_string(bytes) + " bytes)");
  }
  return HostArray(static_cast<std::byte*>(data));
}

std::string shape_text(std::int64_t rows, std::int64_t cols) {
  return "[" + std::to_string(rows) + ", " + std::to_string(cols) + "]";
}

bool is_strided(const TensorSource& source) { return source.row_stride != 0 || source.col_stride != 0; }

// Elements from the tensor's first to its last. False where there is no such number.
bool span_elements(const TensorSource& source, std::uint64_t* elements) {
  const std::int64_t block = format_info(source.format).block_elements;
  if (source.rows < 1 || source.cols < 1 || source.cols % block != 0) return false;
  if (!is_strided(source)) return !__builtin_mul_overflow(source.rows, source.cols, elements);
  // Blocks are not taken apart.
  const bool whole =
      is_plain(source.format) || (source.exponents && source.col_stride == 1 && source.row_stride % block == 0);
  std::uint64_t down = 0, across = 0;
  return whole && source.row_stride >= 1 && source.col_stride >= 1 &&
         !__builtin_mul_overflow(source.rows - 1, source.row_stride, &down) &&
         !__builtin_mul_overflow(source.cols - 1, source.col_stride, &across) &&
         !__builtin_add_overflow(down, across, elements) && !__builtin_add_overflow(*elements, 1, elements);
}

// Bytes from the tensor's first to its last; throws where they do not lie inside the file. `block_bytes`: of a block
// of the source's format in this file.
std::size_t size_inside(const TensorSource& source, std::uint64_t offset, std::int64_t block_bytes,
                        const SourceFile& file) {
  const FormatInfo& format = format_info(source.format);
  std::uint64_t elements = 0, bytes = 0;
  const bool inside = span_elements(source, &elements) &&
                      !__builtin_mul_overflow(elements / format.block_elements, block_bytes, &bytes) &&
                      bytes <= file.size() && offset <= file.size() - bytes;
  if (!inside) {
    const std::string blocks =
        is_plain(source.format) ? "" : ", blocks of " + std::to_string(format.block_elements) + " columns";
    throw Error(code::kInvalidModel, "tensor '" + source.name + "' (" + format.name + " " +
                                         shape_text(source.rows, source.cols) + blocks + " at byte " +
                                         std::to_string(offset) + ") does not lie inside '" + file.path() + "' (" +
                                         std::to_string(file.size()) + " bytes)");
  }
  return static_cast<std::size_t>(bytes);
}

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

HostArray convert(const TensorSource& source, const std::byte* data, Dtype to) {
  const std::int64_t to_bytes = row_bytes(format_of(to), source.cols);
  const std::int64_t from_bytes = row_bytes(source.format, source.cols);
  HostArray converted = allocate_host(static_cast<std::size_t>(source.rows * to_bytes), source.name);
  std::vector<float> row(static_cast<std::size_t>(source.cols));
  for (std::int64_t r = 0; r < source.rows; ++r) {
    dequantise_row(source.format, data + source.interleaved.file_row(r) * from_bytes, source.cols, row.data());
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

// Bytes of the codes of an MXFP4 block; its exponent is one more.
constexpr std::int64_t kMxfp4Codes = 16;

// One tensor of two: each block its exponent, then codes j and j + 16 in byte j.
HostArray join_mxfp4(const TensorSource& source, const std::byte* codes, const std::byte* exponents) {
  const std::int64_t blocks = source.cols / format_info(Format::kMXFP4).block_elements;
  const std::int64_t row_blocks =
      is_strided(source) ? source.row_stride / format_info(Format::kMXFP4).block_elements : blocks;
  HostArray joined =
      allocate_host(static_cast<std::size_t>(source.rows * row_bytes(source.format, source.cols)), source.name);
  std::byte* to = joined.get();
  for (std::int64_t row = 0; row < source.rows; ++row) {
    for (std::int64_t block = row * row_blocks; block < row * row_blocks + blocks; ++block) {
      const std::byte* from = codes + block * kMxfp4Codes;
      const auto code = [from](std::int64_t i) { return from[i / 2] >> (i % 2 * 4) & std::byte{15}; };
      *to++ = exponents[block];
      for (std::int64_t j = 0; j < kMxfp4Codes; ++j) *to++ = code(j) | code(j + kMxfp4Codes) << 4;
    }
  }
  return joined;
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

// Where they are mapped or, where the file is not, in `held`.
const std::byte* exponents_of(const TensorSource& source, const SourceFile& file, HostArray& held) {
  const std::size_t bytes = size_inside(source, source.exponents->offset, 1, file);
  if (file.mapping() != nullptr) return file.mapping() + source.exponents->offset;
  held = allocate_host(bytes, source.name);
  file.read(source.exponents->offset, bytes, held.get());
  return held.get();
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
    const std::int64_t block_bytes = source.exponents ? kMxfp4Codes : format_info(source.format).block_bytes;
    const std::size_t span = size_inside(source, source.offset, block_bytes, *file);
    const std::int64_t stored_bytes = source.rows * row_bytes(source.format, source.cols);
    check_interleaved(source);
    if (source.exponents && source.format != Format::kMXFP4) {
      throw Error(code::kInvalidModel, "tensor '" + source.name + "': only mxfp4 has exponents of their own");
    }
    HostArray copy, held;
    if (!options.mapped) {
      copy = allocate_host(span, source.name);
      file->read(source.offset, span, copy.get());
    }
    const std::byte* data = options.mapped ? file->mapping() + source.offset : copy.get();
    if (source.exponents) {
      copy = join_mxfp4(source, data, exponents_of(source, *open(source.exponents->path).file, held));
    } else if (is_strided(source)) {
      copy = gather(source, data);
    }
    if (source.exponents || is_strided(source)) data = copy.get();
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
      copy = convert(source, data, *options.convert_to);
      host.format = format_of(*options.convert_to);
    } else if (repacked) {
      host.interleaved = source.interleaved;
    } else if (!is_aligned || source.interleaved.head_dim != 0) {
      copy = copy_rows(source, data);
    }
    host.repack = options.repack;
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
