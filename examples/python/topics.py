#!/usr/bin/env python3
"""Creates and describes a topic with code generated from proto/, by Quorate's gRPC API.

    pip install grpcio grpcio-tools googleapis-common-protos
    python3 examples/python/topics.py 127.0.0.1:7001 orders

Prints the description as JSON. A refusal is printed by its name, and the exit status is 1.
"""

import json
import pathlib
import sys
import tempfile

import grpc
from google.protobuf.json_format import MessageToDict
from google.rpc import error_details_pb2, status_pb2
from grpc_tools import protoc

PROTO = pathlib.Path(__file__).resolve().parents[2] / "proto" / "proto"


def generate():
    """Compiles the contracts into a temporary folder, and imports the result."""
    out = tempfile.mkdtemp(prefix="quorate-proto-")
    files = [f"quorate/{name}/v1/{name}.proto" for name in ("metadata", "admin")]
    arguments = ["protoc", f"-I{PROTO}", f"--python_out={out}", f"--grpc_python_out={out}", *files]
    if protoc.main(arguments) != 0:
        sys.exit("cannot compile the contracts")
    sys.path.insert(0, out)
    from quorate.admin.v1 import admin_pb2, admin_pb2_grpc

    return admin_pb2, admin_pb2_grpc


def error_name(error):
    """Kafka's name of the error, from google.rpc.ErrorInfo."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info):
                    return info.reason
    return error.code().name


def describe(admin, stub, name):
    """The topic with all its partitions, which a large topic has in several pages."""
    asked = admin.DescribeTopicsRequest(topics=[admin.TopicRef(name=name)], page_size=1000)
    page = stub.DescribeTopics(asked, timeout=10)
    described = page.topics[0]
    while page.next_page_token:
        asked.page_token = page.next_page_token
        page = stub.DescribeTopics(asked, timeout=10)
        described.partitions.extend(page.topics[0].partitions)
    return described


def brokers(admin, stub):
    """All brokers, which a large cluster has in several pages."""
    asked = admin.ListBrokersRequest(page_size=1000)
    page = stub.ListBrokers(asked, timeout=10)
    found = list(page.brokers)
    while page.next_page_token:
        asked.page_token = page.next_page_token
        page = stub.ListBrokers(asked, timeout=10)
        found.extend(page.brokers)
    return found


def main(address, name):
    admin, services = generate()
    stub = services.AdminStub(grpc.insecure_channel(address))
    replicas = min(3, len(brokers(admin, stub)))
    topic = admin.NewTopic(name=name, partitions=3, replication_factor=replicas)
    created = stub.CreateTopics(admin.CreateTopicsRequest(topics=[topic]), timeout=10)
    refused = created.topics[0].error
    if refused.name:
        print(f"{refused.name}: {refused.message}", file=sys.stderr)
        return 1
    described = describe(admin, stub, name)
    print(json.dumps(MessageToDict(described, preserving_proto_field_name=True), indent=2))
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: topics.py HOST:PORT TOPIC")
    try:
        sys.exit(main(*sys.argv[1:]))
    except grpc.RpcError as error:
        print(f"{error_name(error)}: {error.details()}", file=sys.stderr)
        sys.exit(1)
