// Files that weights are read from, and host memory for weights that do not stay in them.
#pragma once

#include <sys/stat.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <string>

namespace hogwild {

inline constexpr std::size_t kCacheLine = 64;

// Aligned to cache lines.
struct AlignedDelete {
  void operator()(std::byte* data) const { ::operator delete(data, std::align_val_t(kCacheLine)); }
};
using HostArray = std::unique_ptr<std::byte, AlignedDelete>;

// Throws kOutOfMemory, naming the tensor.
HostArray allocate_host(std::size_t bytes, const std::string& tensor);

// A file that tensors are read from, mapped read-only or read on demand.
class SourceFile {
 public:
  // Throws kInvalidModel, naming the file, where it is not a regular file that can be read; kOutOfMemory.
  SourceFile(const std::string& path, bool mapped);
  ~SourceFile();
  SourceFile(const SourceFile&) = delete;
  SourceFile& operator=(const SourceFile&) = delete;

  const std::string& path() const { return path_; }
  std::uint64_t size() const { return static_cast<std::uint64_t>(status_.st_size); }

  // [offset, offset + bytes), which lies inside the file: where it is mapped or, where the file is not, read into
  // `held`. Throws kInvalidModel, kOutOfMemory.
  const std::byte* bytes_at(std::uint64_t offset, std::size_t bytes, const std::string& tensor, HostArray& held) const;

  // The pages of [offset, offset + bytes) are not needed any more: they leave this process, and come back where they
  // are read after all.
  void let_go(std::uint64_t offset, std::size_t bytes) const;

  // Whether the file has the size and the time of its last change that it had when it was opened.
  bool unchanged() const;

 private:
  void read(std::uint64_t offset, std::size_t bytes, std::byte* to) const;

  std::string path_;
  int file_ = -1;
  struct stat status_ = {};
  void* data_ = nullptr;
};

}  // namespace hogwild
