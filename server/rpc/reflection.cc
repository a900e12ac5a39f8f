#include "server/rpc/reflection.h"

#include <google/protobuf/descriptor.pb.h>
#include <grpcpp/support/status.h>

#include <set>
#include <utility>

#include "absl/strings/str_cat.h"

namespace attention::server {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::FileDescriptor;
using google::protobuf::FileDescriptorProto;
using grpc::reflection::v1::ServerReflectionRequest;
using grpc::reflection::v1::ServerReflectionResponse;

void AddWithImports(const FileDescriptor& file, std::set<const FileDescriptor*>* seen,
                    ServerReflectionResponse* response) {
  if (!seen->insert(&file).second) return;
  FileDescriptorProto proto;
  file.CopyTo(&proto);
  response->mutable_file_descriptor_response()->add_file_descriptor_proto(
      proto.SerializeAsString());
  for (int i = 0; i < file.dependency_count(); ++i) {
    AddWithImports(*file.dependency(i), seen, response);
  }
}

void AnswerNotFound(absl::string_view what, ServerReflectionResponse* response) {
  response->mutable_error_response()->set_error_code(grpc::StatusCode::NOT_FOUND);
  response->mutable_error_response()->set_error_message(absl::StrCat("no such ", what));
}

}  // namespace

Reflection::Reflection(std::vector<std::string> services) : services_(std::move(services)) {}

const FileDescriptor* Reflection::FileOf(const ServerReflectionRequest& request) const {
  if (request.has_file_by_filename()) return pool_.FindFileByName(request.file_by_filename());
  if (request.has_file_containing_symbol()) {
    return pool_.FindFileContainingSymbol(request.file_containing_symbol());
  }
  const auto& extension = request.file_containing_extension();
  const Descriptor* type = pool_.FindMessageTypeByName(extension.containing_type());
  if (type == nullptr) return nullptr;
  const FieldDescriptor* field = pool_.FindExtensionByNumber(type, extension.extension_number());
  return field == nullptr ? nullptr : field->file();
}

void Reflection::Answer(const ServerReflectionRequest& request,
                        ServerReflectionResponse* response) const {
  response->set_valid_host(request.host());
  *response->mutable_original_request() = request;
  switch (request.message_request_case()) {
    case ServerReflectionRequest::kListServices:
      for (const std::string& service : services_) {
        response->mutable_list_services_response()->add_service()->set_name(service);
      }
      return;
    case ServerReflectionRequest::kAllExtensionNumbersOfType: {
      const std::string& name = request.all_extension_numbers_of_type();
      const Descriptor* type = pool_.FindMessageTypeByName(name);
      if (type == nullptr) return AnswerNotFound("message", response);
      std::vector<const FieldDescriptor*> extensions;
      pool_.FindAllExtensions(type, &extensions);
      auto* numbers = response->mutable_all_extension_numbers_response();
      numbers->set_base_type_name(name);
      for (const FieldDescriptor* field : extensions)
        numbers->add_extension_number(field->number());
      return;
    }
    case ServerReflectionRequest::MESSAGE_REQUEST_NOT_SET:
      response->mutable_error_response()->set_error_code(grpc::StatusCode::INVALID_ARGUMENT);
      response->mutable_error_response()->set_error_message("message_request is missing");
      return;
    default: {
      const FileDescriptor* file = FileOf(request);
      if (file == nullptr) return AnswerNotFound("file, symbol or extension", response);
      std::set<const FileDescriptor*> seen;
      AddWithImports(*file, &seen, response);
    }
  }
}

}  // namespace attention::server
