#include <gtest/gtest.h>
#include <httplib.h>

#include <cstring>
#include <thread>

/// cpp-httplib is a library of the system and not instrumented: the thread sanitizer sees what
/// constructs and reads its function-local statics (memcpy, memcmp, send), but not the guards that
/// order the two, and would report their first use by two threads as a race. One request before
/// every test constructs them in threads that have ended when the tests' threads start.
namespace stablemask::serve {
namespace {

class FirstRequest : public testing::Environment {
 public:
  void SetUp() override {
    httplib::Server server;
    server.Post("/", [](const httplib::Request&, httplib::Response& response) {
      response.set_chunked_content_provider("text/plain", [](size_t, httplib::DataSink& sink) {
        sink.write("text", std::strlen("text"));
        sink.done();
        return true;
      });
    });
    const int port = server.bind_to_any_port("127.0.0.1");
    std::thread listener([&] { server.listen_after_bind(); });
    const httplib::Result answer =
        httplib::Client("127.0.0.1", port).Post("/", "text", "text/plain");
    server.stop();
    listener.join();
    ASSERT_TRUE(answer) << httplib::to_string(answer.error());
    EXPECT_EQ(answer->body, "text");
  }
};

const auto* const kFirstRequest = testing::AddGlobalTestEnvironment(new FirstRequest);

}  // namespace
}  // namespace stablemask::serve
