// SPDX-License-Identifier: Apache-2.0
// mlic_fast._range_coder: numpy arrays and buffers in, checks, and the GIL released around the coder. Nothing else.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "decoder.hpp"
#include "encoder.hpp"
#include "errors.hpp"
#include "parallel.hpp"
#include "tables.hpp"

namespace py = pybind11;

namespace {

using mlic::CodingError;
using mlic::CodingTables;
using mlic::Decoder;
using mlic::Encoder;

enum class Type { kUint8, kInt16, kInt32 };

// A numpy array's elements. The array must outlive it: bindings hold theirs until the GIL is theirs again.
struct View {
  void* data;
  size_t size;
  Type type;
};

std::string dtype_name(const py::array& array) {
  return py::str(static_cast<py::object>(array.dtype()));
}

// The face has made arrays contiguous, aligned and native; this is the check that memory safety rests on.
View view_of(const py::array& array, const char* what) {
  const py::dtype dtype = array.dtype();
  const char kind = dtype.kind();
  const auto itemsize = static_cast<size_t>(dtype.itemsize());
  const char order = dtype.byteorder();
  Type type;
  if (kind == 'u' && itemsize == 1) {
    type = Type::kUint8;
  } else if (kind == 'i' && itemsize == 2) {
    type = Type::kInt16;
  } else if (kind == 'i' && itemsize == 4) {
    type = Type::kInt32;
  } else {
    throw CodingError(std::string(what) + " has unsupported dtype " + dtype_name(array));
  }
  if (order != '=' && order != '|') throw CodingError(std::string(what) + " is not in native byte order");
  if ((array.flags() & py::array::c_style) == 0) throw CodingError(std::string(what) + " is not contiguous");
  if (reinterpret_cast<uintptr_t>(array.data()) % itemsize != 0) {
    throw CodingError(std::string(what) + " is not aligned");
  }
  return {const_cast<void*>(array.data()), static_cast<size_t>(array.size()), type};
}

View out_view_of(const py::array& array) {
  if (!array.writeable()) throw CodingError("out is read-only");
  return view_of(array, "out");
}

template <typename Work>
void with_indexes(const View& view, const Work& work) {
  switch (view.type) {
    case Type::kUint8:
      return work(static_cast<const uint8_t*>(view.data));
    case Type::kInt32:
      return work(static_cast<const int32_t*>(view.data));
    case Type::kInt16:
      break;
  }
  throw CodingError("indexes are uint8 or int32, not int16");
}

template <typename Work>
void with_symbols(const View& view, const Work& work) {
  switch (view.type) {
    case Type::kInt16:
      return work(static_cast<int16_t*>(view.data));
    case Type::kInt32:
      return work(static_cast<int32_t*>(view.data));
    case Type::kUint8:
      break;
  }
  throw CodingError("symbols are int16 or int32, not uint8");
}

void check_sizes(const View& indexes, const View& symbols) {
  if (indexes.size != symbols.size) {
    throw CodingError("there are " + std::to_string(symbols.size) + " symbols but " + std::to_string(indexes.size) +
                      " indexes");
  }
}

// Both run without the GIL.
void push(Encoder& encoder, const View& symbols, const View& indexes) {
  with_indexes(indexes, [&](const auto* index) {
    with_symbols(symbols, [&](const auto* symbol) { encoder.push(symbol, index, symbols.size); });
  });
}

void decode(Decoder& decoder, const View& indexes, const View& out) {
  with_indexes(indexes, [&](const auto* index) {
    with_symbols(out, [&](auto* symbol) { decoder.decode(index, symbol, indexes.size); });
  });
}

py::bytes to_bytes(const std::vector<uint8_t>& stream) {
  return {reinterpret_cast<const char*>(stream.data()), stream.size()};
}

// Holds a bytes-like object's memory for as long as it lives.
struct Data {
  explicit Data(const py::buffer& buffer) : info(buffer.request()) {
    if (info.itemsize != 1 || info.ndim != 1 || (info.size > 1 && info.strides[0] != 1)) {
      throw CodingError("a stream is a contiguous bytes-like object");
    }
  }
  const uint8_t* begin() const { return static_cast<const uint8_t*>(info.ptr); }
  size_t size() const { return static_cast<size_t>(info.size); }
  py::buffer_info info;
};

std::shared_ptr<CodingTables> make_tables(const py::array& cdfs, const py::array& lengths, const py::array& offsets) {
  if (cdfs.ndim() != 2 || lengths.ndim() != 1 || offsets.ndim() != 1) {
    throw CodingError("coding tables are cdfs [n, L], lengths [n] and offsets [n]");
  }
  const auto rows = static_cast<size_t>(cdfs.shape(0));
  const auto columns = static_cast<size_t>(cdfs.shape(1));
  const View c = view_of(cdfs, "cdfs");
  const View l = view_of(lengths, "lengths");
  const View o = view_of(offsets, "offsets");
  if (c.type != Type::kInt32 || l.type != Type::kInt32 || o.type != Type::kInt32) {
    throw CodingError("coding tables are int32");
  }
  if (l.size != rows || o.size != rows) {
    throw CodingError("coding tables have " + std::to_string(rows) + " rows of cdfs, " + std::to_string(l.size) +
                      " lengths and " + std::to_string(o.size) + " offsets");
  }
  const py::gil_scoped_release release;
  return std::make_shared<CodingTables>(static_cast<const int32_t*>(c.data), rows, columns,
                                        static_cast<const int32_t*>(l.data), static_cast<const int32_t*>(o.data));
}

py::list encode_many(const std::shared_ptr<CodingTables>& tables,
                     const std::vector<std::pair<py::array, py::array>>& jobs, size_t threads) {
  struct Job {
    View symbols;
    View indexes;
  };
  std::vector<Job> views;
  for (const auto& [symbols, indexes] : jobs) {
    views.push_back({view_of(symbols, "symbols"), view_of(indexes, "indexes")});
    check_sizes(views.back().indexes, views.back().symbols);
  }
  std::vector<std::vector<uint8_t>> streams(jobs.size());
  {
    const py::gil_scoped_release release;
    mlic::for_each_stream(jobs.size(), threads, [&](size_t i) {
      Encoder encoder(tables);
      push(encoder, views[i].symbols, views[i].indexes);
      streams[i] = encoder.finish();
    });
  }
  py::list result;
  for (const auto& stream : streams) result.append(to_bytes(stream));
  return result;
}

void decode_many(const std::shared_ptr<CodingTables>& tables,
                 const std::vector<std::tuple<py::buffer, py::array, py::array>>& jobs, size_t threads) {
  struct Job {
    std::unique_ptr<Data> data;
    View indexes;
    View out;
  };
  std::vector<Job> views;
  for (const auto& [data, indexes, out] : jobs) {
    views.push_back({std::make_unique<Data>(data), view_of(indexes, "indexes"), out_view_of(out)});
    check_sizes(views.back().indexes, views.back().out);
  }
  const py::gil_scoped_release release;
  mlic::for_each_stream(jobs.size(), threads, [&](size_t i) {
    Decoder decoder(tables, views[i].data->begin(), views[i].data->size());
    decode(decoder, views[i].indexes, views[i].out);
    decoder.finish();
  });
}

// Python's classes are looked up when needed: an error is rare, and importing this module stays independent of others.
void raise(const char* name, const char* what) {
  try {
    PyErr_SetString(py::module_::import("mlic_fast.errors").attr(name).ptr(), what);
  } catch (py::error_already_set& error) {
    error.restore();
  }
}

}  // namespace

PYBIND11_MODULE(_range_coder, module) {
  module.doc() = "rANS coder, byte-identical with compressai.ans. mlic_fast.entropy.range_coder is its face.";

  py::register_local_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const mlic::CodingError& error) {
      raise("CodingError", error.what());
    } catch (const mlic::BitstreamError& error) {
      raise("BitstreamError", error.what());
    }
  });

  py::class_<CodingTables, std::shared_ptr<CodingTables>>(module, "CodingTables")
      .def(py::init(&make_tables), py::arg("cdfs"), py::arg("lengths"), py::arg("offsets"))
      .def("__len__", &CodingTables::size);

  py::class_<Encoder>(module, "Encoder")
      .def(py::init<std::shared_ptr<CodingTables>>(), py::arg("tables").none(false))
      .def(
          "push",
          [](Encoder& self, const py::array& symbols, const py::array& indexes) {
            const View symbol_view = view_of(symbols, "symbols");
            const View index_view = view_of(indexes, "indexes");
            check_sizes(index_view, symbol_view);
            const py::gil_scoped_release release;
            push(self, symbol_view, index_view);
          },
          py::arg("symbols"), py::arg("indexes"))
      .def("finish", [](Encoder& self) {
        std::vector<uint8_t> stream;
        {
          const py::gil_scoped_release release;
          stream = self.finish();
        }
        return to_bytes(stream);
      });

  py::class_<Decoder>(module, "Decoder")
      .def(py::init([](std::shared_ptr<CodingTables> tables, const py::buffer& buffer) {
             const Data data(buffer);
             return std::make_unique<Decoder>(std::move(tables), data.begin(), data.size());
           }),
           py::arg("tables").none(false), py::arg("data"))
      .def(
          "decode",
          [](Decoder& self, const py::array& indexes, const py::array& out) {
            const View index_view = view_of(indexes, "indexes");
            const View out_view = out_view_of(out);
            check_sizes(index_view, out_view);
            const py::gil_scoped_release release;
            decode(self, index_view, out_view);
          },
          py::arg("indexes"), py::arg("out"))
      .def("finish", &Decoder::finish);

  module.def("encode_many", &encode_many, py::arg("tables").none(false), py::arg("jobs"), py::arg("threads"));
  module.def("decode_many", &decode_many, py::arg("tables").none(false), py::arg("jobs"), py::arg("threads"));
}
