package org.apache.beam.runners.fnexecution.environment;

import java.time.Duration;
import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import org.apache.beam.model.fnexecution.v1.BeamFnApi.StartWorkerRequest;
import org.apache.beam.model.fnexecution.v1.BeamFnApi.StartWorkerResponse;
import org.apache.beam.model.fnexecution.v1.BeamFnApi.StopWorkerRequest;
import org.apache.beam.model.fnexecution.v1.BeamFnApi.StopWorkerResponse;
import org.apache.beam.model.fnexecution.v1.BeamFnExternalWorkerPoolGrpc;
import org.apache.beam.model.pipeline.v1.RunnerApi.Environment;
import org.apache.beam.model.pipeline.v1.RunnerApi.ExternalPayload;
import org.apache.beam.runners.fnexecution.artifact.ArtifactRetrievalService;
import org.apache.beam.runners.fnexecution.control.ControlClientPool;
import org.apache.beam.runners.fnexecution.control.FnApiControlClientPoolService;
import org.apache.beam.runners.fnexecution.control.InstructionRequestHandler;
import org.apache.beam.runners.fnexecution.logging.GrpcLoggingService;
import org.apache.beam.runners.fnexecution.provisioning.StaticGrpcProvisionService;
import org.apache.beam.sdk.fn.IdGenerator;
import org.apache.beam.sdk.fn.channel.ManagedChannelFactory;
import org.apache.beam.sdk.fn.server.GrpcFnServer;
import org.apache.beam.sdk.fn.server.ServerFactory;
import org.apache.beam.vendor.grpc.v1p69p0.io.grpc.ManagedChannel;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Has the pool at an environment's endpoint start a worker; it takes the place of Beam's class of
 * this name.
 *
 * <p>Beam's, when it is interrupted while the worker boots (the job failed or was cancelled then),
 * neither stops the worker nor closes the servers made for it: the worker connects to them, and
 * both live until the TaskManager ends. This one takes back what it began.
 *
 * <p>Remove this source and its filter in pom.xml once Beam does the same.
 */
public class ExternalEnvironmentFactory implements EnvironmentFactory {

  private static final Logger LOG = LoggerFactory.getLogger(ExternalEnvironmentFactory.class);
  private static final Duration NOTED_EVERY = Duration.ofMinutes(2);
  private static final long STOP_WITHIN_SECONDS = 30;

  private final GrpcFnServer<?> control;
  private final GrpcFnServer<?> logging;
  private final GrpcFnServer<?> artifacts;
  private final GrpcFnServer<?> provision;
  private final ControlClientPool.Source clients;

  ExternalEnvironmentFactory(
      GrpcFnServer<?> control,
      GrpcFnServer<?> logging,
      GrpcFnServer<?> artifacts,
      GrpcFnServer<?> provision,
      ControlClientPool.Source clients) {
    this.control = control;
    this.logging = logging;
    this.artifacts = artifacts;
    this.provision = provision;
    this.clients = clients;
  }

  @Override
  public RemoteEnvironment createEnvironment(Environment environment, String workerId)
      throws Exception {
    ExternalPayload payload = ExternalPayload.parseFrom(environment.getPayload());
    String address = payload.getEndpoint().getUrl();
    ManagedChannel channel =
        ManagedChannelFactory.createDefault().forDescriptor(payload.getEndpoint());
    try {
      StartWorkerRequest request =
          StartWorkerRequest.newBuilder()
              .setWorkerId(workerId)
              .setControlEndpoint(control.getApiServiceDescriptor())
              .setLoggingEndpoint(logging.getApiServiceDescriptor())
              .setArtifactEndpoint(artifacts.getApiServiceDescriptor())
              .setProvisionEndpoint(provision.getApiServiceDescriptor())
              .putAllParams(payload.getParamsMap())
              .build();
      StartWorkerResponse response =
          BeamFnExternalWorkerPoolGrpc.newBlockingStub(channel).startWorker(request);
      if (!response.getError().isEmpty()) {
        throw new IllegalStateException(address + ": " + response.getError());
      }
      return new Worker(environment, workerId, connected(workerId, address), channel);
    } catch (Throwable failure) {
      takeBack(workerId, channel, failure);
      throw failure;
    }
  }

  private InstructionRequestHandler connected(String workerId, String address)
      throws Exception {
    while (true) {
      try {
        return clients.take(workerId, NOTED_EVERY);
      } catch (TimeoutException e) {
        LOG.info("Worker {} of the pool at {} has not connected yet", workerId, address);
      }
    }
  }

  /** Nobody will ask for the worker, nor for the servers that only it was told of. */
  private void takeBack(String workerId, ManagedChannel channel, Throwable failure) {
    // A call would be cancelled at once in a thread that is interrupted.
    boolean interrupted = Thread.interrupted() || failure instanceof InterruptedException;
    for (AutoCloseable end :
        List.<AutoCloseable>of(
            () -> stop(workerId, channel), control, logging, artifacts, provision)) {
      try {
        end.close();
      } catch (Exception e) {
        failure.addSuppressed(e);
      }
    }
    if (interrupted) {
      Thread.currentThread().interrupt();
    }
  }

  private static void stop(String workerId, ManagedChannel channel) {
    try {
      StopWorkerResponse response =
          BeamFnExternalWorkerPoolGrpc.newBlockingStub(channel)
              .withDeadlineAfter(STOP_WITHIN_SECONDS, TimeUnit.SECONDS)
              .stopWorker(StopWorkerRequest.newBuilder().setWorkerId(workerId).build());
      if (!response.getError().isEmpty()) {
        throw new IllegalStateException(response.getError());
      }
    } finally {
      channel.shutdownNow();
    }
  }

  /** A worker that has connected. */
  private static final class Worker implements RemoteEnvironment {
    private final Environment environment;
    private final String id;
    private final InstructionRequestHandler handler;
    private final ManagedChannel channel;

    Worker(
        Environment environment,
        String id,
        InstructionRequestHandler handler,
        ManagedChannel channel) {
      this.environment = environment;
      this.id = id;
      this.handler = handler;
      this.channel = channel;
    }

    @Override
    public Environment getEnvironment() {
      return environment;
    }

    @Override
    public InstructionRequestHandler getInstructionRequestHandler() {
      return handler;
    }

    @Override
    public void close() throws Exception {
      try {
        handler.close();
      } finally {
        stop(id, channel);
      }
    }
  }

  /** What Beam asks for factories, one for each worker with servers of its own. */
  public static class Provider implements EnvironmentFactory.Provider {
    @Override
    public EnvironmentFactory createEnvironmentFactory(
        GrpcFnServer<FnApiControlClientPoolService> control,
        GrpcFnServer<GrpcLoggingService> logging,
        GrpcFnServer<ArtifactRetrievalService> artifacts,
        GrpcFnServer<StaticGrpcProvisionService> provision,
        ControlClientPool clientPool,
        IdGenerator idGenerator) {
      return new ExternalEnvironmentFactory(
          control, logging, artifacts, provision, clientPool.getSource());
    }

    @Override
    public ServerFactory getServerFactory() {
      return ServerFactory.createDefault();
    }
  }
}
