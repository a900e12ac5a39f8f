#include "server/rpc/reflection.h"

#include <gmock/gmock.h>
#include <google/protobuf/descriptor.pb.h>

#include "attention/v1/session_service.pb.h"

namespace attention::server {
namespace {

using grpc::reflection::v1::ServerReflectionRequest;
using grpc::reflection::v1::ServerReflectionResponse;
using ::testing::Contains;

class ReflectionTest : public ::testing::Test {
 protected:
  ServerReflectionResponse Answer(const ServerReflectionRequest& request) const {
    ServerReflectionResponse response;
    reflection_.Answer(request, &response);
    return response;
  }
  ServerReflectionResponse AnswerSymbol(const std::string& symbol) const {
    ServerReflectionRequest request;
    request.set_file_containing_symbol(symbol);
    return Answer(request);
  }
  static std::vector<std::string> FilesOf(const ServerReflectionResponse& response) {
    std::vector<std::string> names;
    for (const std::string& bytes : response.file_descriptor_response().file_descriptor_proto()) {
      google::protobuf::FileDescriptorProto file;
      EXPECT_TRUE(file.ParseFromString(bytes));
      names.push_back(file.name());
    }
    return names;
  }

  const Reflection reflection_{{"a.Service", "b.Service"}};
};

TEST_F(ReflectionTest, ServicesAreListed) {
  ServerReflectionRequest request;
  request.set_host("h");
  request.set_list_services("*");
  const ServerReflectionResponse response = Answer(request);
  ASSERT_EQ(response.list_services_response().service_size(), 2);
  EXPECT_EQ(response.list_services_response().service(1).name(), "b.Service");
  EXPECT_EQ(response.valid_host(), "h");
  EXPECT_EQ(response.original_request().list_services(), "*");
}

TEST_F(ReflectionTest, AFileComesWithWhatItImports) {
  (void)v1::SessionStep::descriptor();  // linked in
  for (const char* symbol : {"attention.v1.SessionService", "attention.v1.SessionService.Step",
                             "attention.v1.SessionStep.expected_position"}) {
    const auto files = FilesOf(AnswerSymbol(symbol));
    EXPECT_THAT(files, Contains("attention/v1/session_service.proto")) << symbol;
    EXPECT_THAT(files, Contains("attention/v1/tensor.proto")) << symbol;
  }
  ServerReflectionRequest request;
  request.set_file_by_filename("attention/v1/tensor.proto");
  EXPECT_THAT(FilesOf(Answer(request)), Contains("attention/v1/tensor.proto"));
}

TEST_F(ReflectionTest, WhatDoesNotExistIsNotFound) {
  EXPECT_EQ(AnswerSymbol("no.such.Symbol").error_response().error_code(), 5);
  ServerReflectionRequest request;
  request.set_file_by_filename("no/such.proto");
  EXPECT_EQ(Answer(request).error_response().error_code(), 5);
  request.set_all_extension_numbers_of_type("no.such.Type");
  EXPECT_EQ(Answer(request).error_response().error_code(), 5);
  request.mutable_file_containing_extension()->set_containing_type("no.such.Type");
  EXPECT_EQ(Answer(request).error_response().error_code(), 5);
  EXPECT_EQ(Answer({}).error_response().error_code(), 3);
}

TEST_F(ReflectionTest, AMessageWithoutExtensionsHasNone) {
  ServerReflectionRequest request;
  request.set_all_extension_numbers_of_type("attention.v1.SessionStep");
  const ServerReflectionResponse response = Answer(request);
  EXPECT_EQ(response.all_extension_numbers_response().base_type_name(), "attention.v1.SessionStep");
  EXPECT_EQ(response.all_extension_numbers_response().extension_number_size(), 0);
}

}  // namespace
}  // namespace attention::server
