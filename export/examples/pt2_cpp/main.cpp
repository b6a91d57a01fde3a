// Loads what AOTInductor compiled of a network of kdmri-edge, without Python, and reproduces the
// bundle's golden output.
//
//     reconstruct BUNDLE [LIMIT]
//
// Exits with 0 if the image deviates by no more than LIMIT (1e-3) of the golden output's range.

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

// Reads what numpy.save wrote of a C-contiguous little-endian float32 array.
at::Tensor read_npy(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::string bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    if (bytes.size() < 12 || bytes.compare(0, 6, "\x93NUMPY") != 0)
        throw std::runtime_error(path + " is not a .npy file");
    const bool first = bytes[6] == 1;  // format 1.0 counts its header in two bytes, later ones in four
    std::size_t length = 0;
    for (int i = first ? 1 : 3; i >= 0; --i)
        length = length << 8 | static_cast<unsigned char>(bytes[8 + i]);
    const std::size_t start = (first ? 10 : 12) + length;
    const std::string header = bytes.substr(first ? 10 : 12, length);
    if (header.find("'<f4'") == std::string::npos ||
        header.find("'fortran_order': False") == std::string::npos)
        throw std::runtime_error(path + " does not hold float32 in C order");
    std::vector<std::int64_t> shape;
    std::size_t count = 1;
    const std::size_t open = header.find('(', header.find("'shape'"));
    for (const char* at = header.c_str() + open + 1; *at != ')';) {
        char* end = nullptr;
        const auto number = std::strtoul(at, &end, 10);
        if (end == at) {  // a comma or a blank
            ++at;
            continue;
        }
        shape.push_back(static_cast<std::int64_t>(number));
        count *= number;
        at = end;
    }
    if (bytes.size() != start + count * sizeof(float))
        throw std::runtime_error(path + " is cut short");
    return at::from_blob(bytes.data() + start, shape).clone();
}

// Tells whether a tensor has the first of the shapes that a package was compiled for, written as
// "[[1, 1, 240, 240], ...]" with null for a free size.
bool fits(const at::Tensor& tensor, const std::string& shapes) {
    std::istringstream text(shapes.substr(2, shapes.find(']') - 2));
    std::string size;
    std::int64_t axis = 0;
    for (; std::getline(text, size, ','); ++axis) {
        if (axis == tensor.dim()) return false;
        if (size.find("null") == std::string::npos && std::stoll(size) != tensor.size(axis))
            return false;
    }
    return axis == tensor.dim();
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 2) {
        std::cerr << "Usage: reconstruct BUNDLE [LIMIT]\n";
        return 2;
    }
    const std::string bundle = argv[1];
    const double limit = argc > 2 ? std::atof(argv[2]) : 1e-3;
    try {
        const at::Tensor input = read_npy(bundle + "/golden_input.npy");
        const at::Tensor wanted = read_npy(bundle + "/golden_output.npy");
        torch::inductor::AOTIModelPackageLoader network(bundle + "/model.aotinductor.pt2");
        if (!fits(input, network.get_metadata().at("kdmri_edge.inputs")))
            throw std::runtime_error("the golden input has another shape than the network's");
        c10::InferenceMode guard;
        const at::Tensor image = network.run({input}).at(0);
        if (image.sizes() != wanted.sizes())
            throw std::runtime_error("the image has another shape than the golden output");
        const double error = (image - wanted).abs().max().item<double>();
        const double range = (wanted.max() - wanted.min()).item<double>();
        const double relative = error / std::max(range, 1e-12);
        std::cout << "{\"max_error\": " << relative << ", \"limit\": " << limit << "}\n";
        if (!(relative <= limit)) {
            std::cerr << "Error: the image deviates from the golden output.\n";
            return 1;
        }
    } catch (const std::exception& error) {
        std::cerr << "Error: " << error.what() << "\n";
        return 1;
    }
    return 0;
}
