// How an error in a kernel reaches Python. What torch makes of an exception in a boxed function depends on its version
// (2.13 keeps its type, 2.15 turns all into RuntimeError): so the type travels in the text, and segops/_registry.py
// reads it there.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>

#include "segops/memory.h"

namespace segops {

template <auto kFunction>
struct Guarded;

template <class Result, class... Args, Result (*kFunction)(Args...)>
struct Guarded<kFunction> {
  static Result call(Args... args) {
    try {
      return kFunction(std::move(args)...);
    } catch (const OutOfMemory& error) {
      throw std::runtime_error(std::string("segops.MemoryError: ") + error.what());
    } catch (const std::invalid_argument& error) {
      throw std::runtime_error(std::string("segops.ValueError: ") + error.what());
    }
  }
};

}  // namespace segops

// In place of TORCH_BOX(&function).
#define SEGOPS_BOX(function) TORCH_BOX(&segops::Guarded<&function>::call)
