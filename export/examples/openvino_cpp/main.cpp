// Loads an OpenVINO bundle of kdmri-edge without Python and reproduces its golden output.
//
//     reconstruct BUNDLE
//
// Exits with 0 if the image deviates by no more than 1e-3 of the golden output's range; an int8 or
// half-precision bundle may deviate more, so its limit can be given as a second argument.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <openvino/openvino.hpp>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

struct Array {
    ov::Shape shape;
    std::vector<float> values;
};

// Reads what numpy.save wrote of a C-contiguous little-endian float32 array.
Array read_npy(const std::string& path) {
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
    Array array;
    std::size_t count = 1;
    const std::size_t open = header.find('(', header.find("'shape'"));
    for (const char* at = header.c_str() + open + 1; *at != ')';) {
        char* end = nullptr;
        const auto number = std::strtoul(at, &end, 10);
        if (end == at) {  // a comma or a blank
            ++at;
            continue;
        }
        array.shape.push_back(number);
        count *= number;
        at = end;
    }
    if (bytes.size() != start + count * sizeof(float))
        throw std::runtime_error(path + " is cut short");
    const auto* data = reinterpret_cast<const float*>(bytes.data() + start);
    array.values.assign(data, data + count);
    return array;
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
        Array input = read_npy(bundle + "/golden_input.npy");
        const Array wanted = read_npy(bundle + "/golden_output.npy");
        ov::Core core;
        // Without the hint OpenVINO computes in bf16 wherever the CPU has it.
        auto network = core.compile_model(bundle + "/model.xml", "CPU",
                                          ov::hint::inference_precision(ov::element::f32));
        auto request = network.create_infer_request();
        request.set_input_tensor(
            ov::Tensor(ov::element::f32, input.shape, input.values.data()));
        request.infer();
        const ov::Tensor output = request.get_output_tensor();
        if (output.get_shape() != wanted.shape)
            throw std::runtime_error("the image has another shape than the golden output");
        const float* image = output.data<float>();
        double error = 0;
        for (std::size_t i = 0; i < wanted.values.size(); ++i)
            error = std::max(error, std::fabs(double(image[i]) - wanted.values[i]));
        const auto [low, high] =
            std::minmax_element(wanted.values.begin(), wanted.values.end());
        const double relative = error / std::max(double(*high) - *low, 1e-12);
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
