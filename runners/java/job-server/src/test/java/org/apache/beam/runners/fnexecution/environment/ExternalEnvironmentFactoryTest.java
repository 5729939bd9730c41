package org.apache.beam.runners.fnexecution.environment;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertThrows;
import static org.junit.Assert.assertTrue;

import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CompletionStage;
import org.apache.beam.model.fnexecution.v1.BeamFnApi.InstructionRequest;
import org.apache.beam.model.fnexecution.v1.BeamFnApi.InstructionResponse;
import org.apache.beam.model.fnexecution.v1.BeamFnApi.ProcessBundleDescriptor;
import org.apache.beam.model.fnexecution.v1.BeamFnApi.StartWorkerRequest;
import org.apache.beam.model.fnexecution.v1.BeamFnApi.StartWorkerResponse;
import org.apache.beam.model.fnexecution.v1.BeamFnApi.StopWorkerRequest;
import org.apache.beam.model.fnexecution.v1.BeamFnApi.StopWorkerResponse;
import org.apache.beam.model.fnexecution.v1.BeamFnExternalWorkerPoolGrpc.BeamFnExternalWorkerPoolImplBase;
import org.apache.beam.model.pipeline.v1.RunnerApi.Environment;
import org.apache.beam.model.pipeline.v1.RunnerApi.ExternalPayload;
import org.apache.beam.runners.fnexecution.control.ControlClientPool;
import org.apache.beam.runners.fnexecution.control.InstructionRequestHandler;
import org.apache.beam.sdk.fn.server.FnService;
import org.apache.beam.sdk.fn.server.GrpcFnServer;
import org.apache.beam.sdk.fn.server.ServerFactory;
import org.apache.beam.vendor.grpc.v1p69p0.io.grpc.stub.StreamObserver;
import org.junit.After;
import org.junit.Before;
import org.junit.Test;

/** A pool on a real socket, and workers that never connect. */
public class ExternalEnvironmentFactoryTest {

  private static final class Pool extends BeamFnExternalWorkerPoolImplBase implements FnService {
    final List<String> calls = new ArrayList<>();
    String error = "";

    @Override
    public void startWorker(
        StartWorkerRequest request, StreamObserver<StartWorkerResponse> responses) {
      calls.add("start " + request.getWorkerId());
      responses.onNext(StartWorkerResponse.newBuilder().setError(error).build());
      responses.onCompleted();
    }

    @Override
    public void stopWorker(
        StopWorkerRequest request, StreamObserver<StopWorkerResponse> responses) {
      calls.add("stop " + request.getWorkerId());
      responses.onNext(StopWorkerResponse.getDefaultInstance());
      responses.onCompleted();
    }

    @Override
    public void close() {}
  }

  /** A service that only says whether it was closed. */
  private static final class Service extends BeamFnExternalWorkerPoolImplBase implements FnService {
    boolean closed;

    @Override
    public void close() {
      closed = true;
    }
  }

  private final Pool pool = new Pool();
  private final List<Service> services = new ArrayList<>();
  private final List<GrpcFnServer<Service>> servers = new ArrayList<>();
  private GrpcFnServer<Pool> poolServer;
  private Environment environment;

  @Before
  public void serve() throws Exception {
    poolServer = GrpcFnServer.allocatePortAndCreateFor(pool, ServerFactory.createDefault());
    environment =
        Environment.newBuilder()
            .setPayload(
                ExternalPayload.newBuilder()
                    .setEndpoint(poolServer.getApiServiceDescriptor())
                    .build()
                    .toByteString())
            .build();
    for (int i = 0; i < 4; i++) {
      Service service = new Service();
      services.add(service);
      servers.add(
          GrpcFnServer.allocatePortAndCreateFor(service, ServerFactory.createDefault()));
    }
  }

  @After
  public void close() throws Exception {
    Thread.interrupted(); // a test leaves it set
    for (GrpcFnServer<Service> server : servers) {
      server.close();
    }
    poolServer.close();
  }

  private ExternalEnvironmentFactory factory(ControlClientPool.Source clients) {
    return new ExternalEnvironmentFactory(
        servers.get(0), servers.get(1), servers.get(2), servers.get(3), clients);
  }

  @Test
  public void aTaskInterruptedWhileItsWorkerBootsStopsTheWorkerAndItsServers() {
    ControlClientPool.Source interrupted =
        (workerId, timeout) -> {
          throw new InterruptedException();
        };
    assertThrows(
        InterruptedException.class,
        () -> factory(interrupted).createEnvironment(environment, "1-1"));
    assertEquals(List.of("start 1-1", "stop 1-1"), pool.calls);
    assertTrue(services.stream().allMatch(service -> service.closed));
    assertTrue("Flink asks for the flag", Thread.currentThread().isInterrupted());
  }

  @Test
  public void whatThePoolRefusesIsSaidAndItsServersAreClosed() {
    pool.error = "no Python";
    Exception failure =
        assertThrows(
            IllegalStateException.class,
            () -> factory((id, timeout) -> null).createEnvironment(environment, "1-1"));
    assertTrue(failure.getMessage(), failure.getMessage().endsWith("no Python"));
    assertTrue(services.stream().allMatch(service -> service.closed));
  }

  @Test
  public void aWorkerThatConnectedIsStoppedWhenItsEnvironmentCloses() throws Exception {
    List<String> closed = new ArrayList<>();
    RemoteEnvironment made =
        factory((id, timeout) -> new Handler(closed)).createEnvironment(environment, "1-1");
    assertEquals(List.of("start 1-1"), pool.calls);
    made.close();
    assertEquals(List.of("start 1-1", "stop 1-1"), pool.calls);
    assertEquals(List.of("handler"), closed);
    assertTrue(services.stream().noneMatch(service -> service.closed));
  }

  private static final class Handler implements InstructionRequestHandler {
    private final List<String> closed;

    Handler(List<String> closed) {
      this.closed = closed;
    }

    @Override
    public CompletionStage<InstructionResponse> handle(InstructionRequest request) {
      throw new UnsupportedOperationException();
    }

    @Override
    public void registerProcessBundleDescriptor(ProcessBundleDescriptor descriptor) {}

    @Override
    public void close() {
      closed.add("handler");
    }
  }
}
