import attention.v1.AttentionConfigOuterClass.AttentionConfig;
import attention.v1.AttentionServiceGrpc;
import attention.v1.AttentionServiceOuterClass.AttendRequest;
import attention.v1.TensorOuterClass.DType;
import attention.v1.TensorOuterClass.Tensor;
import com.google.protobuf.ByteString;
import io.grpc.ChannelCredentials;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.TlsChannelCredentials;
import io.grpc.stub.MetadataUtils;
import java.io.File;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.concurrent.TimeUnit;

/**
 * A minimal Java client, from generated stubs: causal grouped-query attention over two heads of keys.
 *
 * <pre>java Attend localhost:7070</pre>
 *
 * <p>To a server with TLS that asks for a token, both of files:
 *
 * <pre>java Attend localhost:7070 server.pem token</pre>
 *
 * Prints the output, one number a line.
 */
public final class Attend {
  private static final int NUM_TOKENS = 16;
  private static final int NUM_QUERY_HEADS = 4;
  private static final int NUM_KV_HEADS = 2;
  private static final int HEAD_DIM = 8;

  /** Stands in for a model's projections: [NUM_TOKENS, heads, HEAD_DIM] between -1 and 1. */
  private static float[] numbers(int seed, int heads) {
    float[] values = new float[NUM_TOKENS * heads * HEAD_DIM];
    for (int i = 0; i < values.length; i++) {
      values[i] = ((i * 37 + seed) % 101 - 50) / 50f;
    }
    return values;
  }

  /** Float32 numbers as the wire has them: dense, row-major, little-endian. */
  private static Tensor tensor(float[] values, long... shape) {
    ByteBuffer data = ByteBuffer.allocate(values.length * 4).order(ByteOrder.LITTLE_ENDIAN);
    data.asFloatBuffer().put(values);
    Tensor.Builder tensor = Tensor.newBuilder().setDtype(DType.DTYPE_FLOAT32);
    for (long dimension : shape) {
      tensor.addShape(dimension);
    }
    return tensor.setData(ByteString.copyFrom(data.rewind())).build();
  }

  private static Tensor attend(AttentionServiceGrpc.AttentionServiceBlockingStub stub) {
    AttendRequest request =
        AttendRequest.newBuilder()
            .setQ(tensor(numbers(1, NUM_QUERY_HEADS), NUM_TOKENS, NUM_QUERY_HEADS, HEAD_DIM))
            .setK(tensor(numbers(2, NUM_KV_HEADS), NUM_TOKENS, NUM_KV_HEADS, HEAD_DIM))
            .setV(tensor(numbers(3, NUM_KV_HEADS), NUM_TOKENS, NUM_KV_HEADS, HEAD_DIM))
            .setConfig(AttentionConfig.newBuilder().setIsCausal(true))
            .build();
    return stub.withDeadlineAfter(30, TimeUnit.SECONDS).attend(request).getOutput();
  }

  /** The stub's calls carry the token. */
  private static AttentionServiceGrpc.AttentionServiceBlockingStub withToken(
      AttentionServiceGrpc.AttentionServiceBlockingStub stub, String token) {
    Metadata metadata = new Metadata();
    metadata.put(
        Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER), "Bearer " + token);
    return stub.withInterceptors(MetadataUtils.newAttachHeadersInterceptor(metadata));
  }

  /** A failed call throws StatusRuntimeException: code and message, which names the wrong field. */
  public static void main(String[] arguments) throws IOException {
    if (arguments.length != 1 && arguments.length != 3) {
      System.err.println("usage: java Attend HOST:PORT [CA-FILE TOKEN-FILE]");
      System.exit(2);
    }
    boolean withTls = arguments.length == 3;
    ChannelCredentials credentials =
        withTls
            ? TlsChannelCredentials.newBuilder().trustManager(new File(arguments[1])).build()
            : InsecureChannelCredentials.create();
    ManagedChannel channel =
        Grpc.newChannelBuilder(arguments[0], credentials)
            .maxInboundMessageSize(Integer.MAX_VALUE)
            .build();
    try {
      var stub = AttentionServiceGrpc.newBlockingStub(channel);
      if (withTls) {
        stub = withToken(stub, Files.readString(Path.of(arguments[2])).strip());
      }
      ByteBuffer data = attend(stub).getData().asReadOnlyByteBuffer();
      data.order(ByteOrder.LITTLE_ENDIAN);
      while (data.hasRemaining()) {
        System.out.println(data.getFloat());
      }
    } finally {
      channel.shutdownNow();
    }
  }
}
