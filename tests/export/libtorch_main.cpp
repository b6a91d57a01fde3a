// Loads model.pt with libtorch alone, runs the golden input and prints the largest error.
// Arguments: model.pt, two files of raw float32 (input, expected output), and C, H, W.
#include <torch/script.h>

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <vector>

static torch::Tensor read(const char* path, std::vector<int64_t> shape) {
  torch::Tensor tensor = torch::empty(shape);
  std::ifstream(path, std::ios::binary)
      .read(static_cast<char*>(tensor.data_ptr()), tensor.numel() * sizeof(float));
  return tensor;
}

int main(int, char** argument) {
  const std::vector<int64_t> shape{1, std::atoi(argument[4]), std::atoi(argument[5]),
                                   std::atoi(argument[6])};
  torch::jit::Module model = torch::jit::load(argument[1]);
  torch::InferenceMode guard;
  const torch::Tensor output = model.forward({read(argument[2], shape)}).toTensor();
  std::cout << (output - read(argument[3], shape)).abs().max().item<float>() << std::endl;
}
