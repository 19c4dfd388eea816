#include "model/source_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

#include "core/error.h"

namespace hogwild {
namespace {

std::string system_message(int error) { return std::generic_category().message(error); }

}  // namespace

HostArray allocate_host(std::size_t bytes, const std::string& tensor) {
  void* data = ::operator new(bytes, std::align_val_t(kCacheLine), std::nothrow);
  if (data == nullptr) {
    throw Error(code::kOutOfMemory, "no memory for tensor '" + tensor + "' (" + std::to_string(bytes) + " bytes)");
  }
  return HostArray(static_cast<std::byte*>(data));
}

SourceFile::SourceFile(const std::string& path, bool mapped) : path_(path) {
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

SourceFile::~SourceFile() {
  if (data_ != nullptr) ::munmap(data_, size());
  ::close(file_);
}

const std::byte* SourceFile::bytes_at(std::uint64_t offset, std::size_t bytes, const std::string& tensor,
                                      HostArray& held) const {
  if (data_ != nullptr) return static_cast<const std::byte*>(data_) + offset;
  held = allocate_host(bytes, tensor);
  read(offset, bytes, held.get());
  return held.get();
}

void SourceFile::let_go(std::uint64_t offset, std::size_t bytes) const {
  if (data_ == nullptr) return;
  const auto page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  const std::uint64_t begin = (offset + page - 1) / page * page, end = (offset + bytes) / page * page;
  if (begin < end) ::madvise(static_cast<std::byte*>(data_) + begin, end - begin, MADV_DONTNEED);
}

void SourceFile::read(std::uint64_t offset, std::size_t bytes, std::byte* to) const {
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

bool SourceFile::unchanged() const {
  struct stat now = {};
  return ::fstat(file_, &now) == 0 && now.st_size == status_.st_size && now.st_mtim.tv_sec == status_.st_mtim.tv_sec &&
         now.st_mtim.tv_nsec == status_.st_mtim.tv_nsec;
}

}  // namespace hogwild
