// Changes protobuf messages at random but along their structure: fields get values that have broken
// decoders before, tensors keep (or lose) the agreement of shape and bytes.
#pragma once

#include <google/protobuf/message.h>

#include <random>
#include <string>

namespace attention::fuzz {

using Random = std::mt19937;

// Makes one to three changes somewhere in the message.
void Mutate(google::protobuf::Message* message, Random& random);

// Sizes the data of every tensor in the message to what dtype and shape say, where that is small;
// new bytes are random. Without this nearly every changed shape would be refused at once.
void RepairTensors(google::protobuf::Message* message, Random& random);

// Flips, cuts, doubles or inserts bytes of a serialised message.
void MutateBytes(std::string* bytes, Random& random);

}  // namespace attention::fuzz
