# cmake -DFILES=a.py;b.py -DOUTPUT=python_files.cpp -P EmbedPython.cmake: writes the definition of
# python_files() (src/interop/python_files.h).
set(rows)
foreach(file ${FILES})
  get_filename_component(name ${file} NAME)
  file(READ ${file} text)
  string(APPEND rows "      {\"${name}\", R\"python(${text})python\"},\n")
endforeach()
file(WRITE ${OUTPUT} "#include \"src/interop/python_files.h\"\n
namespace stablemask::interop {\n
const std::vector<PythonFile>& python_files() {
  static const std::vector<PythonFile> files = {\n${rows}  };
  return files;
}\n
}  // namespace stablemask::interop\n")
