import attention.v1.AttentionConfigOuterClass.AttentionConfig;
import attention.v1.AttentionServiceGrpc;
import attention.v1.AttentionServiceOuterClass.AttendRequest;
import attention.v1.TensorOuterClass.DType;
import attention.v1.TensorOuterClass.Tensor;
import com.google.protobuf.ByteString;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.concurrent.TimeUnit;

/**
 * A minimal Java client, from generated stubs: causal grouped-query attention over two heads of keys.
 *
 * <pre>java Attend localhost:7070</pre>
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

  private static Tensor attend(ManagedChannel channel) {
    AttendRequest request =
        AttendRequest.newBuilder()
            .setQ(tensor(numbers(1, NUM_QUERY_HEADS), NUM_TOKENS, NUM_QUERY_HEADS, HEAD_DIM))
            .setK(tensor(numbers(2, NUM_KV_HEADS), NUM_TOKENS, NUM_KV_HEADS, HEAD_DIM))
            .setV(tensor(numbers(3, NUM_KV_HEADS), NUM_TOKENS, NUM_KV_HEADS, HEAD_DIM))
            .setConfig(AttentionConfig.newBuilder().setIsCausal(true))
            .build();
    return AttentionServiceGrpc.newBlockingStub(channel)
        .withDeadlineAfter(30, TimeUnit.SECONDS)
        .attend(request)
        .getOutput();
  }

  /** A failed call throws StatusRuntimeException: code and message, which names the wrong field. */
  public static void main(String[] arguments) {
    if (arguments.length != 1) {
      System.err.println("usage: java Attend HOST:PORT");
      System.exit(2);
    }
    ManagedChannel channel =
        ManagedChannelBuilder.forTarget(arguments[0])
            .usePlaintext()
            .maxInboundMessageSize(Integer.MAX_VALUE)
            .build();
    try {
      ByteBuffer data = attend(channel).getData().asReadOnlyByteBuffer();
      data.order(ByteOrder.LITTLE_ENDIAN);
      while (data.hasRemaining()) {
        System.out.println(data.getFloat());
      }
    } finally {
      channel.shutdownNow();
    }
  }
}
